//! What a program ran only once need not stay in its memory.
//!
//! The kernel maps 64 KiB of a file around every page that is touched (`fault_around_bytes`, mm/memory.c). A program that
//! reads its configuration and its first state with code that it never runs again keeps most of its text resident.

use std::ffi::c_void;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of this process's program text, and of what else it maps of files and has not changed. What is
/// still needed comes back from the page cache, 64 KiB at a touch. Returns the bytes that were mapped.
///
/// # Errors
///
/// `/proc/self/smaps` cannot be read, or the kernel refuses.
#[expect(
    unsafe_code,
    reason = "advice on a mapping that is not known to the compiler"
)]
pub fn unmap_unused() -> io::Result<usize> {
    let smaps = BufReader::new(std::fs::File::open("/proc/self/smaps")?);
    let mut unmapped = 0;
    for mapping in clean_mappings(smaps)? {
        let Range { start, end } = mapping.addresses;
        let Some(address) = NonNull::new(start as *mut c_void) else {
            continue;
        };
        // SAFETY: a private mapping of a file that this process cannot write to and has no changed page of
        // (`Anonymous: 0 kB`, `Swap: 0 kB`): every page that is thrown away is read from the file again, the same as before. The
        // loader, which does change such mappings, is done long before; files of running programs cannot be written to.
        unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) }?;
        unmapped += mapping.resident;
    }
    Ok(unmapped)
}

/// A private mapping of a file, not writable, none of whose pages was changed.
#[derive(Debug, PartialEq, Eq)]
struct CleanMapping {
    addresses: Range<usize>,
    /// Bytes that are mapped now.
    resident: usize,
}

/// Reads `smaps` (proc(5)).
fn clean_mappings(smaps: impl BufRead) -> io::Result<Vec<CleanMapping>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let line = line?;
        if let Some(head) = head(&line) {
            current = head.is_readonly_file.then_some(CleanMapping {
                addresses: head.addresses,
                resident: 0,
            });
        } else if let Some(kilobytes) = figure(&line, "Rss:") {
            if let Some(mapping) = &mut current {
                mapping.resident = kilobytes * 1024;
            }
        } else if let Some(kilobytes) = figure(&line, "Anonymous:") {
            current = current.filter(|_| kilobytes == 0);
        } else if let Some(kilobytes) = figure(&line, "Swap:") {
            // The last figure that counts: whatever follows belongs to the same mapping. A changed page that is swapped
            // out is not among the anonymous ones, and would be thrown away with its place in the swap.
            found.extend(current.take().filter(|_| kilobytes == 0));
        }
    }
    Ok(found)
}

/// First line of a mapping.
struct Head {
    addresses: Range<usize>,
    is_readonly_file: bool,
}

fn head(line: &str) -> Option<Head> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let addresses = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let rights = words.next()?;
    // Offset, device and inode; what is no file has no path, or one in brackets.
    let path = words.nth(3);
    Some(Head {
        addresses,
        is_readonly_file: rights.starts_with('r')
            && rights.as_bytes().get(1) == Some(&b'-')
            && rights.ends_with('p')
            && path.is_some_and(|path| path.starts_with('/')),
    })
}

fn figure(line: &str, name: &str) -> Option<usize> {
    let number = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_parts_of_files_that_cannot_be_written_count() {
        let swapped = |head: &str, resident: u32, anonymous: u32, swap: u32| {
            format!(
                "{head}\nSize: 64 kB\nRss:    {resident} kB\nAnonymous:     {anonymous} kB\nSwap:     {swap} kB\nSwapPss: 0 kB\nVmFlags: rd ex\n"
            )
        };
        let mapping =
            |head: &str, resident: u32, anonymous: u32| swapped(head, resident, anonymous, 0);
        let smaps = [
            mapping("1000-3000 r-xp 00001000 fe:00 77      /usr/bin/a b", 8, 0),
            mapping(
                "3000-4000 r--p 00001000 fe:00 77      /usr/bin/relocated",
                4,
                4,
            ),
            swapped(
                "8000-9000 r--p 00001000 fe:00 77      /usr/bin/swapped",
                0,
                0,
                4,
            ),
            mapping("4000-5000 rw-p 00001000 fe:00 77      /usr/bin/data", 4, 0),
            mapping(
                "5000-6000 r--s 00001000 fe:00 77      /usr/bin/shared",
                4,
                0,
            ),
            mapping("6000-7000 r-xp 00000000 00:00 0       [vdso]", 4, 0),
            mapping("7000-8000 r--p 00000000 00:00 0 ", 4, 0),
        ]
        .concat();

        let found = clean_mappings(smaps.as_bytes()).unwrap();

        assert_eq!(
            found,
            [CleanMapping {
                addresses: 0x1000..0x3000,
                resident: 8 << 10
            }]
        );
    }
}
