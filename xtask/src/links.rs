//! Links between the repository's documents: each relative one must lead to a file.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::run::{files, root};

/// Checks every Markdown file.
pub(crate) fn check() -> Result<()> {
    let mut broken = Vec::new();
    for name in files(&[".md"])? {
        let text = std::fs::read_to_string(root().join(&name)).with_context(|| name.clone())?;
        let folder = Path::new(&name).parent().unwrap_or(Path::new(""));
        let missing = targets(&text).filter(|target| !root().join(folder).join(target).exists());
        broken.extend(missing.map(|target| format!("{name}: {target}")));
    }
    ensure!(broken.is_empty(), "links that lead nowhere:\n  {}", broken.join("\n  "));
    Ok(())
}

/// The files that a text links to, without the part after `#`. Links to the network and within the text are left out.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_files_count() {
        let text = "[a](docs/a.md) [b](#here) [c](https://c.example/x) [d](d.md#part) f](x y)";
        assert_eq!(targets(text).collect::<Vec<_>>(), ["docs/a.md", "d.md"]);
    }
}
