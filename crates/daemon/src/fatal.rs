//! An error that ends the daemon: one line, a hint, an exit code.

use std::error::Error;

use crate::subnet_file::SubnetFileError;

/// Why `flanneld` cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    /// What failed, on which object, why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The exit status.
    pub code: u8,
}

impl Fatal {
    /// An error with this exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code }
    }

    /// The same with a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<SubnetFileError> for Fatal {
    fn from(error: SubnetFileError) -> Self {
        Self::new(1, error.to_string()).hint("make the directory writable, or name another file with --subnet-file")
    }
}

/// An error with its causes, on one line. A cause that the text already ends with is not told twice.
pub(crate) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string);
    causes.fold(error.to_string(), |text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
}
