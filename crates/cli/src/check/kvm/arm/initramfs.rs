//! The archive that a kernel unpacks as its first file system (newc).

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;
/// Major and minor number of `/dev/console`, where the kernel opens the first program's standard output.
const CONSOLE: [u32; 2] = [5, 1];

/// An archive with `/dev/console` and these files: name and content. The folders of files are made.
pub fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut folders = vec!["dev"];
    archive.entry("dev", FOLDER, [0, 0], &[]);
    archive.entry("dev/console", DEVICE, CONSOLE, &[]);
    for (name, content) in files {
        if let Some((folder, _)) = name.rsplit_once('/').filter(|(folder, _)| !folders.contains(folder)) {
            archive.entry(folder, FOLDER, [0, 0], &[]);
            folders.push(folder);
        }
        archive.entry(name, FILE, [0, 0], content);
    }
    archive.entry("TRAILER!!!", 0, [0, 0], &[]);
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: [u32; 2], content: &[u8]) {
        self.inode += 1;
        let links = 1;
        // Inode, mode, owner, group, links, time, size, device of the file, device that it is, length of the name, check.
        let [major, minor] = device;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout is that of the kernel's documentation of the initramfs buffer format.
    #[test]
    fn an_archive_has_aligned_entries_and_a_trailer() {
        let archive = pack(&[("init".into(), b"hello".to_vec()), ("modules/a.ko".into(), Vec::new())]);
        let text = String::from_utf8_lossy(&archive);
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 6, "dev, dev/console, init, modules, modules/a.ko, the trailer");
        assert!(starts.iter().all(|at| at % 4 == 0) && archive.len() % 4 == 0);
        let init = &text[starts[2]..starts[3]];
        assert_eq!(&init[14..22], "000081ed", "a file that may be executed");
        assert_eq!(&init[54..62], "00000005", "its size");
        assert_eq!(&init[94..102], "00000005", "of its name, with the zero at its end");
        assert_eq!(&init[110..], "init\0\0hello\0\0\0");
        let console = &text[starts[1]..starts[2]];
        assert_eq!((&console[78..86], &console[86..94]), ("00000005", "00000001"));
        assert!(text[starts[5]..].starts_with("070701") && text.contains("TRAILER!!!\0"));
    }
}
