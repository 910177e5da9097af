//! What `cargo metadata` says about the workspace.

use std::process::Stdio;

use serde::Deserialize;

use crate::command;

/// The packages of the workspace and all that they depend on.
#[derive(Deserialize)]
pub struct Metadata {
    /// All packages.
    pub packages: Vec<Package>,
    /// The ids of the workspace's own.
    pub workspace_members: Vec<String>,
    /// Who depends on whom.
    pub resolve: Option<Resolve>,
}

/// One package.
#[derive(Deserialize)]
pub struct Package {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression.
    pub license: Option<String>,
    /// Its libraries, programs and tests.
    pub targets: Vec<Target>,
    /// Its features.
    pub features: std::collections::BTreeMap<String, Vec<String>>,
}

/// A library, program, test, ….
#[derive(Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, ….
    pub kind: Vec<String>,
}

/// Who depends on whom.
#[derive(Deserialize)]
pub struct Resolve {
    /// A node for each package.
    pub nodes: Vec<Node>,
}

/// The dependencies of one package.
#[derive(Deserialize)]
pub struct Node {
    /// The package's id.
    pub id: String,
    /// What it depends on.
    pub deps: Vec<Dependency>,
}

/// One dependency.
#[derive(Deserialize)]
pub struct Dependency {
    /// The id of what is depended on.
    pub pkg: String,
    /// In which ways.
    pub dep_kinds: Vec<DependencyKind>,
}

/// One way of depending on something.
#[derive(Deserialize)]
pub struct DependencyKind {
    /// `None` for a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
}

impl Metadata {
    /// Asks cargo; `dependencies`: also about packages outside the workspace.
    ///
    /// # Errors
    /// A sentence, if cargo fails.
    pub fn read(dependencies: bool) -> Result<Self, String> {
        let mut cargo = command::cargo(["metadata", "--quiet", "--format-version=1", "--locked", "--all-features"]);
        if !dependencies {
            cargo.arg("--no-deps");
        }
        let output = cargo.stderr(Stdio::inherit()).output().map_err(|error| format!("cargo metadata: {error}"))?;
        if !output.status.success() {
            return Err(format!("cargo metadata: {}", output.status));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))
    }

    /// The workspace's own packages.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}
