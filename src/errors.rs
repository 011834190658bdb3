//! How errors are shown: the operation first, then its sources, on one line.

/// An error and its sources as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        // Some libraries repeat the cause in the message, others the message in the cause.
        if !text.ends_with(&message) && !message.ends_with(&last) {
            text = format!("{text}: {message}");
        }
        last = message;
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_source_once() {
        let error = crate::fs::read(std::path::Path::new("/nonexistent"), 1).unwrap_err();
        assert_eq!(chain(&error), "could not open /nonexistent: No such file or directory (os error 2)");
    }
}
