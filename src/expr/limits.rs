//! Bounds of an expression. They keep the parser's and the evaluator's recursion far below the 2 MiB stack of a worker
//! thread, and the work of one evaluation proportional to the length of its text: there are no loops, no closures, no
//! ranges and no function whose result is larger than what it was given. Facts and data, which may be large, are looked
//! into where they are, and only what an expression ends up with is copied, up to a limit.

/// Longest expression in bytes.
pub const LENGTH_BYTES: usize = 4096;

/// Deepest nesting of parentheses, brackets, braces, calls, prefix operators, `?:`, `??` and `**`.
pub const DEPTH: usize = 32;

/// Most names, literals, calls and member accesses. It also bounds the depth of the tree of a long chain such as
/// `a || b || c`, which leans to the left and is not nested in the text.
pub const TERMS: usize = 256;

/// Largest compiled regular expression in bytes; `(a{1000}){1000}` is refused, not compiled.
pub const REGEX_BYTES: usize = 1024 * 1024;

/// Most facts and data, as they are in memory, that one evaluation takes in, in bytes.
pub const VALUE_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes that all lookups of facts together look at and make on the way: of one expression, or of all in a document.
pub const WORK_BYTES: usize = 256 * 1024 * 1024;
