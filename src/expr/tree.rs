//! The parsed expression.

use super::functions::Function;
use super::pattern::Pattern;
use super::value::Value;

/// A part of an expression and the byte offset that messages about it point to.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) part: Part,
    pub(super) offset: usize,
}

#[derive(Debug)]
pub(super) enum Part {
    Literal(Value),
    Variable(String),
    Array(Vec<Tree>),
    Map(Vec<(String, Tree)>),
    /// `pattern` is the compiled literal argument of `identity`.
    Call {
        function: Function,
        arguments: Vec<Tree>,
        pattern: Option<Pattern>,
    },
    Unary {
        operator: Unary,
        operand: Box<Tree>,
    },
    /// `pattern` is the compiled literal right side of `matches`.
    Binary {
        operator: Binary,
        left: Box<Tree>,
        right: Box<Tree>,
        pattern: Option<Pattern>,
    },
    Conditional {
        condition: Box<Tree>,
        then: Box<Tree>,
        otherwise: Box<Tree>,
    },
    Index {
        of: Box<Tree>,
        index: Box<Tree>,
        absent: Absent,
    },
}

/// What a member access on nil is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// `a.b`
    IsAnError,
    /// `a?.b`
    IsNil,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Not,
    Minus,
    Plus,
}

impl Unary {
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Not => "!",
            Self::Minus => "-",
            Self::Plus => "+",
        }
    }

    /// How tightly it binds, on the scale of [`Binary::precedence`].
    pub(super) fn precedence(self) -> u16 {
        match self {
            Self::Not => 50,
            Self::Minus | Self::Plus => 90,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Matches,
    Contains,
    StartsWith,
    EndsWith,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Power,
    Coalesce,
}

impl Binary {
    /// Reads a token's text.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "||" | "or" => Self::Or,
            "&&" | "and" => Self::And,
            "==" => Self::Equal,
            "!=" => Self::NotEqual,
            "<" => Self::Less,
            "<=" => Self::LessOrEqual,
            ">" => Self::Greater,
            ">=" => Self::GreaterOrEqual,
            "in" => Self::In,
            "matches" => Self::Matches,
            "contains" => Self::Contains,
            "startsWith" => Self::StartsWith,
            "endsWith" => Self::EndsWith,
            "+" => Self::Add,
            "-" => Self::Subtract,
            "*" => Self::Multiply,
            "/" => Self::Divide,
            "%" => Self::Remainder,
            "**" | "^" => Self::Power,
            "??" => Self::Coalesce,
            _ => return None,
        })
    }

    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Or => "||",
            Self::And => "&&",
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::Matches => "matches",
            Self::Contains => "contains",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
            Self::Power => "**",
            Self::Coalesce => "??",
        }
    }

    /// The language's own table (expr-lang, `parser/operator/operator.go`).
    pub(super) fn precedence(self) -> u16 {
        match self {
            Self::Or => 10,
            Self::And => 15,
            Self::Equal
            | Self::NotEqual
            | Self::In
            | Self::Matches
            | Self::Contains
            | Self::StartsWith
            | Self::EndsWith
            | Self::Less
            | Self::LessOrEqual
            | Self::Greater
            | Self::GreaterOrEqual => 20,
            Self::Add | Self::Subtract => 30,
            Self::Multiply | Self::Divide | Self::Remainder => 60,
            Self::Power => 100,
            Self::Coalesce => 500,
        }
    }

    pub(super) fn is_ordering(self) -> bool {
        matches!(self, Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual)
    }

    /// Whether `not` may stand before it, as in `a not in b`.
    pub(super) fn can_be_negated(self) -> bool {
        matches!(self, Self::In | Self::Matches | Self::Contains | Self::StartsWith | Self::EndsWith)
    }
}
