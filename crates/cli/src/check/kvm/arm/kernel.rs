//! Debian's kernel for arm64, out of its package.
//!
//! The package is fetched once, by the machine's own apt sources but with a state of its own: nothing is installed, and no
//! right is needed. It stays in `$XDG_CACHE_HOME/doorbell/arm64` (else `~/.cache/doorbell/arm64`). A package
//! `linux-image-*_arm64.deb` that is put there by hand is taken as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What depends on the newest kernel of a Debian release for machines in clouds.
const META_PACKAGE: &str = "linux-image-cloud-arm64:arm64";
/// The modules between the agent and its port, below `kernel/drivers`.
const MODULES: [&str; 4] =
    ["virtio/virtio.ko", "virtio/virtio_ring.ko", "virtio/virtio_mmio.ko", "char/virtio_console.ko"];

/// A kernel, and the modules that the agent loads.
#[derive(Debug)]
pub struct Kernel {
    /// The file to boot.
    pub image: PathBuf,
    /// Name and content of each module that it has as a file.
    pub modules: Vec<(String, Vec<u8>)>,
}

impl Kernel {
    /// The kernel in the cache; fetches it the first time.
    ///
    /// # Errors
    /// One line: what is missing.
    pub fn find() -> Result<Self, String> {
        let cache = cache()?;
        let unpacked = cache.join("kernel");
        if !unpacked.exists() {
            fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
            // Under a name of our own first: another check may be at it too.
            let work = cache.join(format!("work-{}", std::process::id()));
            let outcome = unpack(&cache, &work).and_then(|()| publish(&work.join("root"), &unpacked));
            let _ = fs::remove_dir_all(&work);
            outcome?;
        }
        Self::read(&unpacked)
    }

    fn read(root: &Path) -> Result<Self, String> {
        let image = only(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        let version = only(&root.join("lib/modules"), |_| true)?;
        let mut modules = Vec::new();
        for module in MODULES {
            let path = version.join("kernel/drivers").join(module);
            let name = module.rsplit('/').next().unwrap_or(module);
            match fs::read(&path) {
                Ok(content) => modules.push((format!("modules/{name}"), content)),
                Err(_) if path.with_extension("ko.xz").exists() => {
                    return Err(format!(
                        "{} is compressed: leave it unpacked beside it",
                        path.with_extension("ko.xz").display()
                    ));
                }
                // Then it is part of the kernel itself.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", path.display())),
            }
        }
        Ok(Self { image, modules })
    }
}

fn cache() -> Result<PathBuf, String> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let base = base.ok_or("neither XDG_CACHE_HOME nor HOME says where the kernel can be kept")?;
    Ok(base.join("doorbell/arm64"))
}

/// The only entry of a folder with such a name.
fn only(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        (None, _) => Err(format!("{} does not have what a kernel package has: remove it", folder.display())),
        (Some(_), false) => Err(format!("{} has several kernels: leave one", folder.display())),
    }
}

/// Unpacks the package into `work/root`.
fn unpack(cache: &Path, work: &Path) -> Result<(), String> {
    let is_package = |name: &str| name.starts_with("linux-image-") && name.ends_with("_arm64.deb");
    fs::create_dir_all(work).map_err(|error| format!("{}: {error}", work.display()))?;
    let package = match only(cache, is_package) {
        Ok(package) => package,
        Err(_) => {
            eprintln!("doorbell: fetching Debian's arm64 kernel (30 MB) into {}, this once", cache.display());
            download(work).map_err(|error| {
                format!("{error}; or put Debian's linux-image-…-cloud-arm64 package into {}", cache.display())
            })?;
            only(work, is_package)?
        }
    };
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(work.join("root")), "dpkg").map(drop)
}

fn publish(from: &Path, to: &Path) -> Result<(), String> {
    match fs::rename(from, to) {
        // Somebody else was faster.
        Err(_) if to.exists() => Ok(()),
        outcome => outcome.map_err(|error| format!("{}: {error}", to.display())),
    }
}

/// What a program says; `package` is Debian's name of where it comes from.
pub fn run(command: &mut Command, package: &str) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{name} is not installed; Debian's package is {package}"),
        _ => format!("{name}: {error}"),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed: {}", said.trim().lines().next_back().unwrap_or("it said nothing")))
}

/// Fetches the package into `work`.
fn download(work: &Path) -> Result<(), String> {
    let conf = private_apt(work).map_err(|error| format!("{}: {error}", work.display()))?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &conf).current_dir(work);
        command
    };
    run(apt("apt-get").args(["-qq", "update"]), "apt")?;
    let shown = run(apt("apt-cache").args(["show", META_PACKAGE]), "apt")?;
    let package = dependency(&shown).ok_or("the apt sources of this machine have no kernel for arm64")?;
    run(apt("apt-get").args(["-qq", "download", &format!("{package}:arm64")]), "apt").map(drop)
}

/// The kernel that the meta-package depends on.
fn dependency(shown: &str) -> Option<&str> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends.split([',', ' ']).find(|name| name.starts_with("linux-image-"))
}

/// An apt state in `work`, with the sources of the machine; where its configuration is.
fn private_apt(work: &Path) -> std::io::Result<PathBuf> {
    for folder in ["lists/partial", "cache/archives/partial", "state", "sources"] {
        fs::create_dir_all(work.join("apt").join(folder))?;
    }
    let apt = work.join("apt");
    fs::write(apt.join("state/status"), "")?;
    let listed = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    for file in listed.chain([PathBuf::from("/etc/apt/sources.list")]) {
        let one_line = file.extension().is_some_and(|extension| extension == "list");
        if !(one_line || file.extension().is_some_and(|extension| extension == "sources")) {
            continue;
        }
        let (Ok(text), Some(name)) = (fs::read_to_string(&file), file.file_name()) else { continue };
        let every = text.lines().filter_map(|line| if one_line { any_line(line) } else { any_field(line) });
        fs::write(apt.join("sources").join(name), every.map(|line| line + "\n").collect::<String>())?;
    }
    let folder = apt.display();
    let text = format!(
        "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
         APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\nAPT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\nDir::State \"{folder}/state\";\nDir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/state/status\";\nDir::Cache \"{folder}/cache\";\n\
         Dir::Etc::sourcelist \"{folder}/none\";\nDir::Etc::sourceparts \"{folder}/sources\";\n"
    );
    let conf = apt.join("conf");
    fs::write(&conf, text)?;
    Ok(conf)
}

/// A line of `sources.list` without its restriction to architectures; no sources of packages.
fn any_line(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with("deb-src") {
        return None;
    }
    let Some((before, rest)) = line.split_once('[') else { return Some(line.to_owned()) };
    let (options, after) = rest.split_once(']')?;
    let kept: Vec<_> = options.split_whitespace().filter(|option| !option.starts_with("arch")).collect();
    let kept = if kept.is_empty() { String::new() } else { format!("[{}] ", kept.join(" ")) };
    Some(format!("{before}{kept}{}", after.trim_start()))
}

/// A line of a `.sources` file, in the same way.
fn any_field(line: &str) -> Option<String> {
    let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
    if name.starts_with("architectures") {
        return None;
    }
    Some(if name == "types" { "Types: deb".to_owned() } else { line.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_lose_their_restriction_to_architectures() {
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main";
        assert_eq!(any_line(line).unwrap(), "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main");
        assert_eq!(any_line("deb [arch=amd64] http://x y main").unwrap(), "deb http://x y main");
        assert_eq!(any_line("deb-src http://x y main"), None);
        assert_eq!(any_field("Architectures: amd64"), None);
        assert_eq!(any_field("Types: deb deb-src").unwrap(), "Types: deb");
        assert_eq!(any_field("URIs: http://x").unwrap(), "URIs: http://x");
    }

    #[test]
    fn the_kernel_is_what_the_meta_package_depends_on() {
        let shown = "Package: linux-image-cloud-arm64\nDepends: linux-image-6.1.0-50-cloud-arm64 (= 6.1.176-1)\n";
        assert_eq!(dependency(shown), Some("linux-image-6.1.0-50-cloud-arm64"));
        assert_eq!(dependency("N: Unable to locate package\n"), None);
    }
}
