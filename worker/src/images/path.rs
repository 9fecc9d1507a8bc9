//! Paths from the wire never leave the data root (design section 12).

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Why a path is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{path}` is no path below the data root")]
pub(crate) struct PathError {
    path: String,
}

/// Joins the root and a relative path with `/`. Symbolic links below the root may lead elsewhere: whoever made them may.
///
/// # Errors
/// When a part of the path is anything but a name.
pub(super) fn resolve(root: &Path, relative: &str) -> Result<PathBuf, PathError> {
    let is_name = |part: &str| {
        let mut components = Path::new(part).components();
        let first = components.next();
        matches!(first, Some(Component::Normal(name)) if name == part)
            && components.next().is_none()
            && !part.contains('\0')
    };
    if relative.split('/').all(is_name) {
        Ok(root.join(relative))
    } else {
        Err(PathError { path: relative.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined() {
        let root = Path::new("/data");
        assert_eq!(resolve(root, "a/b c/ü..png"), Ok(PathBuf::from("/data/a/b c/ü..png")));
    }

    #[test]
    fn everything_else_is_refused() {
        for path in ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a/./b", "a//b", "a/", "a\0b"] {
            let error = resolve(Path::new("/data"), path).unwrap_err();
            assert!(error.to_string().contains("data root"), "{path}");
        }
    }

    #[cfg(windows)]
    #[test]
    fn drives_and_backslashes_are_refused() {
        for path in ["C:", "C:x", "..\\x", "a\\..\\x", "\\\\server\\share"] {
            assert!(resolve(Path::new("D:\\data"), path).is_err(), "{path}");
        }
    }
}
