//! The licences of everything that is linked, against the rule sets of `deny.toml`. Needs no network beyond cargo's
//! own downloads.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use spdx::Expression;

use crate::{
    command,
    metadata::{Metadata, Node, Package},
    steps::Failure,
};

/// `deny.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(rename = "rule-set")]
    sets: Vec<RuleSet>,
}

/// What may be linked into some programs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleSet {
    name: String,
    /// The workspace's packages that it holds for.
    packages: Vec<String>,
    /// Whether what only tests use must comply too.
    dev_dependencies: bool,
    /// SPDX ids.
    allow: Vec<String>,
}

/// Checks both rule sets. Returns a line for each.
pub fn check() -> Result<Vec<String>, Failure> {
    let file = command::root().join("deny.toml");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let rules: Rules = toml::from_str(&text).map_err(|error| format!("deny.toml: {error}"))?;
    let metadata = Metadata::read(true)?;
    for member in metadata.members() {
        let sets = rules.sets.iter().filter(|set| set.packages.contains(&member.name)).count();
        if sets != 1 {
            return Err(format!("deny.toml: package {} is in {sets} rule sets, and must be in one", member.name));
        }
    }
    rules.sets.iter().map(|set| check_set(set, &metadata)).collect()
}

fn check_set(set: &RuleSet, metadata: &Metadata) -> Result<String, Failure> {
    let roots: Vec<&Package> = metadata.members().filter(|member| set.packages.contains(&member.name)).collect();
    if roots.is_empty() {
        return Ok(format!("{}: no such package yet", set.name));
    }
    let linked = linked(set, &roots, metadata);
    let refused: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| linked.contains(package.id.as_str()))
        .filter_map(|package| refusal(&set.allow, package))
        .collect();
    if refused.is_empty() {
        Ok(format!("{}: {} packages, all allowed", set.name, linked.len()))
    } else {
        Err(format!("rule set {} does not allow: {}", set.name, refused.join("; ")))
    }
}

/// The ids of the packages that `roots` are made of.
fn linked<'a>(set: &RuleSet, roots: &[&'a Package], metadata: &'a Metadata) -> BTreeSet<&'a str> {
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.iter().flat_map(|resolve| &resolve.nodes).map(|node| (node.id.as_str(), node)).collect();
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = roots.iter().map(|root| root.id.as_str()).collect();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let member = metadata.workspace_members.iter().any(|member| member == id);
        for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps) {
            let counts = dependency.dep_kinds.iter().any(|kind| match kind.kind.as_deref() {
                Some("dev") => member && set.dev_dependencies,
                _ => true,
            });
            if counts {
                open.push(&dependency.pkg);
            }
        }
    }
    seen
}

/// Why a package is not allowed, or `None`.
fn refusal(allow: &[String], package: &Package) -> Option<String> {
    let name = format!("{} {}", package.name, package.version);
    let Some(licence) = &package.license else { return Some(format!("{name} (no licence stated)")) };
    // "A/B" is how old manifests write "A OR B".
    match Expression::parse(&licence.replace('/', " OR ")) {
        Ok(expression) if expression.evaluate(|required| allow.contains(&required.to_string())) => None,
        Ok(_) => Some(format!("{name} ({licence})")),
        Err(error) => Some(format!("{name} ({licence}: {})", error.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(licence: Option<&str>, allow: &[&str]) -> bool {
        let package = Package {
            id: "p".into(),
            name: "p".into(),
            version: "1.0.0".into(),
            license: licence.map(Into::into),
            targets: vec![],
            features: BTreeMap::new(),
        };
        let allow: Vec<String> = allow.iter().map(|id| (*id).to_owned()).collect();
        refusal(&allow, &package).is_some()
    }

    #[test]
    fn an_alternative_is_enough_and_a_conjunction_needs_both() {
        assert!(!refused(Some("MIT OR Apache-2.0"), &["MIT"]));
        assert!(!refused(Some("MIT/Apache-2.0"), &["MIT"]));
        assert!(refused(Some("MIT AND Apache-2.0"), &["MIT"]));
        assert!(!refused(Some("(MIT OR Apache-2.0) AND Unicode-3.0"), &["MIT", "Unicode-3.0"]));
    }

    #[test]
    fn apache_alone_is_refused_beside_the_gpl() {
        assert!(refused(Some("Apache-2.0"), &["MIT", "BSD-3-Clause", "GPL-2.0-only"]));
        assert!(refused(Some("Apache-2.0 WITH LLVM-exception"), &["MIT", "Apache-2.0"]));
    }

    #[test]
    fn what_states_no_licence_is_refused() {
        assert!(refused(None, &["MIT"]));
        assert!(refused(Some("as you like"), &["MIT"]));
    }

    #[test]
    fn the_rules_of_this_repository_parse() {
        let text = std::fs::read_to_string(command::root().join("deny.toml")).unwrap();
        let rules: Rules = toml::from_str(&text).unwrap();
        let names: Vec<_> = rules.sets.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names, ["default", "lab-arm"]);
        assert!(!rules.sets[1].allow.iter().any(|id| id.starts_with("Apache")));
    }
}
