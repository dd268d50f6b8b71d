//! Images without a registry: a static busybox, and the lab's prober beside it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::netns::run;
use crate::program;

/// Holds the namespaces of a pod.
pub const PAUSE: &str = "localhost/pause:1";
/// What pods of the lab run: a shell, the usual small programs, and `towpath-probe`.
pub const LAB: &str = "localhost/lab:1";

/// Archives of all images, for `ctr images import`. Made at the first call for a run's node.
pub(crate) fn archives(folder: &Path) -> Result<[PathBuf; 2]> {
    // All nodes of a run have the same.
    let folder = folder.parent().unwrap_or(folder).join("images");
    let archives = [("pause", PAUSE), ("lab", LAB)].map(|(name, image)| {
        let archive = folder.join(format!("{name}.tar"));
        (name, image, archive)
    });
    if !folder.exists() {
        fs::create_dir_all(&folder)?;
        let layout = folder.join("layout");
        umoci(&["init", "--layout"], &layout, "", &[])?;
        for (name, image, archive) in &archives {
            let tree = folder.join(name);
            lay_out(&tree, *image == LAB)?;
            umoci(&["new", "--image"], &layout, name, &[])?;
            let tree = tree.display().to_string();
            umoci(&["insert", "--image"], &layout, name, &[&tree, "/"])?;
            let mut words = vec!["--config.env", "PATH=/bin"];
            if *image == PAUSE {
                words.extend([
                    "--config.entrypoint",
                    "/bin/sleep",
                    "--config.cmd",
                    "infinity",
                ]);
            } else {
                words.extend(["--config.cmd", "/bin/sh"]);
            }
            umoci(&["config", "--image"], &layout, name, &words)?;
            run(Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet"])
                .arg(format!("oci:{}:{name}", layout.display()))
                .arg(format!("docker-archive:{}:{image}", archive.display())))?;
        }
    }
    Ok(archives.map(|(_, _, archive)| archive))
}

fn umoci(verb: &[&str], layout: &Path, tag: &str, more: &[&str]) -> Result<()> {
    let mut image = layout.display().to_string();
    if !tag.is_empty() {
        image.push(':');
        image.push_str(tag);
    }
    run(Command::new("umoci").args(verb).arg(image).args(more))?;
    Ok(())
}

/// The files of an image.
fn lay_out(tree: &Path, with_prober: bool) -> Result<()> {
    let programs = tree.join("bin");
    for name in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(program::BUSYBOX, programs.join("busybox"))?;
    let applets = run(Command::new(program::BUSYBOX).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", programs.join(applet))?;
    }
    if with_prober {
        let prober = program::probe()?;
        fs::copy(&prober, programs.join("towpath-probe"))?;
        for library in libraries(&prober)? {
            let inside = library.strip_prefix("/").unwrap_or(&library);
            let target = tree.join(inside);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&library, &target)
                .with_context(|| format!("cannot copy {}", library.display()))?;
        }
    }
    Ok(())
}

/// What a program needs beside itself, as the system's loader tells.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = run(Command::new("ldd").arg(program))?;
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
