//! Tokens to a checked tree. In: the text and the scope. Out: a tree whose depth is bounded, whose functions and
//! names exist in the scope, and whose literal arguments and regular expressions are valid; or the first problem.
//!
//! Why not the `expr-lang` crate: it takes time exponential in the nesting of indexes, panics on `{a: [1]}`, and gives
//! wrong answers for `{a: 1 + 2}`, for `true ?? false && false` and for strings with `\\n` or `\'` in them. A wrong
//! answer here installs or removes a machine. The tests compare the two wherever the crate is right.

use super::error::Problem;
use super::functions::{Function, Scope};
use super::lexer::{Kind, Refused, Token, shorten, tokens, unavailable};
use super::limits;
use super::pattern::Pattern;
use super::tree::{Absent, Binary, Part, Tree, Unary};
use super::value::Value;

/// `None` for an expression without any token: it is true everywhere.
pub(super) fn parse(source: &str, scope: &Scope) -> Result<Option<Tree>, Refused> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, position: 0, depth: 0, terms: 0, scope };
    if *parser.kind() == Kind::End {
        return Ok(None);
    }
    let tree = parser.expression(0)?;
    match parser.kind() {
        Kind::End => Ok(Some(tree)),
        Kind::Sign(";") => Err(unavailable(parser.offset(), "\";\"", "an expression is a single condition")),
        _ => Err(parser.unexpected("an operator or the end of the expression")),
    }
}

struct Parser<'a> {
    /// Ends with [`Kind::End`], which is never consumed.
    tokens: Vec<Token>,
    position: usize,
    depth: usize,
    terms: usize,
    scope: &'a Scope,
}

static END: Kind = Kind::End;

impl Parser<'_> {
    fn kind(&self) -> &Kind {
        self.tokens.get(self.position).map_or(&END, |token| &token.kind)
    }

    fn next_kind(&self) -> &Kind {
        self.tokens.get(self.position + 1).map_or(&END, |token| &token.kind)
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.position).or(self.tokens.last()).map_or(0, |token| token.offset)
    }

    fn advance(&mut self) {
        if self.position + 1 < self.tokens.len() {
            self.position += 1;
        }
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.kind(), Kind::Sign(found) if *found == sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &str, expected: &'static str) -> Result<(), Refused> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &'static str) -> Refused {
        if let Kind::Sign("..") = self.kind() {
            return unavailable(self.offset(), "the range operator ..", "its cost is not bounded");
        }
        (self.offset(), Problem::Unexpected { expected, found: self.kind().describe() })
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Refused>) -> Result<T, Refused> {
        if self.depth >= limits::DEPTH {
            return Err((self.offset(), Problem::TooDeep));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn count_term(&mut self) -> Result<(), Refused> {
        self.terms += 1;
        if self.terms > limits::TERMS { Err((self.offset(), Problem::TooManyTerms)) } else { Ok(()) }
    }

    /// Precedence climbing; `minimum` is the loosest binary operator to take, and 0 also takes `?:`.
    fn expression(&mut self, minimum: u16) -> Result<Tree, Refused> {
        let mut left = self.operand()?;
        let mut previous = None;
        while let Some((operator, negated)) = self.binary_operator() {
            if operator.precedence() < minimum {
                break;
            }
            let offset = self.offset();
            // The language refuses this mixture, since readers disagree on what it means.
            if previous == Some(Binary::Coalesce) && operator != Binary::Coalesce {
                return Err((offset, Problem::MixedCoalesce { operator: operator.sign() }));
            }
            if operator.is_ordering() && previous.is_some_and(Binary::is_ordering) {
                return Err((offset, Problem::ChainedComparison));
            }
            previous = Some(operator);
            self.advance();
            if negated {
                self.advance();
            }
            let right = match operator {
                Binary::Power => self.nested(|parser| parser.expression(operator.precedence()))?,
                _ => self.expression(operator.precedence() + 1)?,
            };
            let pattern = match (operator, &right.part) {
                (Binary::Matches, Part::Literal(Value::Text(text))) => {
                    Some(Pattern::compile(text).map_err(|problem| (right.offset, problem))?)
                }
                _ => None,
            };
            let part = Part::Binary { operator, left: Box::new(left), right: Box::new(right), pattern };
            left = Tree { part, offset };
            if negated {
                left = Tree { part: Part::Unary { operator: Unary::Not, operand: Box::new(left) }, offset };
            }
        }
        if minimum == 0 { self.conditional(left) } else { Ok(left) }
    }

    /// The operator at the current token, and whether `not` stands before it.
    fn binary_operator(&self) -> Option<(Binary, bool)> {
        let read = |kind: &Kind| match kind {
            Kind::Sign(text) => Binary::from_text(text),
            Kind::Word(text) => Binary::from_text(text),
            _ => None,
        };
        match self.kind() {
            Kind::Word(word) if word == "not" => {
                read(self.next_kind()).filter(|operator| operator.can_be_negated()).map(|operator| (operator, true))
            }
            kind => read(kind).map(|operator| (operator, false)),
        }
    }

    fn conditional(&mut self, condition: Tree) -> Result<Tree, Refused> {
        let offset = self.offset();
        if !self.take("?") {
            return Ok(condition);
        }
        let (then, otherwise) = self.nested(|parser| {
            let then = parser.expression(0)?;
            parser.expect(":", "\":\" and the value for when the condition is false")?;
            Ok((then, parser.expression(0)?))
        })?;
        let part =
            Part::Conditional { condition: Box::new(condition), then: Box::new(then), otherwise: Box::new(otherwise) };
        Ok(Tree { part, offset })
    }

    /// A prefix operator with its operand, or a value with its member accesses.
    fn operand(&mut self) -> Result<Tree, Refused> {
        let operator = match self.kind() {
            Kind::Sign("!") => Some(Unary::Not),
            Kind::Word(word) if word == "not" => Some(Unary::Not),
            Kind::Sign("-") => Some(Unary::Minus),
            Kind::Sign("+") => Some(Unary::Plus),
            _ => None,
        };
        let Some(operator) = operator else {
            let primary = self.primary()?;
            return self.postfix(primary);
        };
        let offset = self.offset();
        self.advance();
        let operand = self.nested(|parser| parser.expression(operator.precedence()))?;
        Ok(Tree { part: Part::Unary { operator, operand: Box::new(operand) }, offset })
    }

    fn primary(&mut self) -> Result<Tree, Refused> {
        let offset = self.offset();
        let literal = match self.kind() {
            Kind::Integer(value) => Value::Integer(*value),
            Kind::Float(value) => Value::Float(*value),
            Kind::Text(text) => Value::Text(text.clone()),
            Kind::Word(word) => {
                let word = word.clone();
                return self.word(&word, offset);
            }
            Kind::Sign("(") => {
                self.advance();
                let mut inner = self.nested(|parser| parser.expression(0))?;
                self.expect(")", "\")\"")?;
                inner.offset = offset;
                return Ok(inner);
            }
            Kind::Sign("[") => {
                self.count_term()?;
                self.advance();
                let items = self.nested(|parser| parser.list("]"))?;
                return Ok(Tree { part: Part::Array(items), offset });
            }
            Kind::Sign("{") => {
                self.count_term()?;
                self.advance();
                let entries = self.nested(Self::map)?;
                return Ok(Tree { part: Part::Map(entries), offset });
            }
            _ => return Err(self.unexpected("a value, a call or \"(\"")),
        };
        self.count_term()?;
        self.advance();
        Ok(Tree { part: Part::Literal(literal), offset })
    }

    fn word(&mut self, word: &str, offset: usize) -> Result<Tree, Refused> {
        let literal = match word {
            "true" => Some(Value::Boolean(true)),
            "false" => Some(Value::Boolean(false)),
            "nil" => Some(Value::Nil),
            "let" | "if" | "else" => {
                let construct = format!("{word:?}");
                return Err(unavailable(offset, &construct, "an expression is a single condition; use ?: to choose"));
            }
            "and" | "or" | "in" | "matches" | "contains" | "startsWith" | "endsWith" => {
                return Err(self.unexpected("a value, a call or \"(\""));
            }
            _ => None,
        };
        self.count_term()?;
        if let Some(literal) = literal {
            self.advance();
            return Ok(Tree { part: Part::Literal(literal), offset });
        }
        let at = |problem| (offset, problem);
        if *self.next_kind() != Kind::Sign("(") {
            self.scope.variable(word).map_err(at)?;
            self.advance();
            return Ok(Tree { part: Part::Variable(word.to_owned()), offset });
        }
        let function = self.scope.function(word).map_err(at)?;
        self.advance();
        self.advance();
        let arguments = self.nested(|parser| parser.list(")"))?;
        let pattern = check_call(function, &arguments, offset)?;
        Ok(Tree { part: Part::Call { function, arguments, pattern }, offset })
    }

    /// Values separated by commas up to the closing bracket, which it takes; a trailing comma is allowed.
    fn list(&mut self, close: &'static str) -> Result<Vec<Tree>, Refused> {
        let mut items = Vec::new();
        while !self.take(close) {
            items.push(self.expression(0)?);
            if !self.take(",") {
                self.expect(close, if close == ")" { "\",\" or \")\"" } else { "\",\" or \"]\"" })?;
                break;
            }
        }
        Ok(items)
    }

    fn map(&mut self) -> Result<Vec<(String, Tree)>, Refused> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        while !self.take("}") {
            let key = match self.kind() {
                Kind::Text(text) => text.clone(),
                Kind::Word(word) => word.clone(),
                _ => return Err(self.unexpected("a map key or \"}\"")),
            };
            if entries.iter().any(|(other, _)| *other == key) {
                return Err((self.offset(), Problem::DuplicateMapKey { key: shorten(&key) }));
            }
            self.advance();
            self.expect(":", "\":\" and the value of the key")?;
            entries.push((key, self.expression(0)?));
            if !self.take(",") {
                self.expect("}", "\",\" or \"}\"")?;
                break;
            }
        }
        Ok(entries)
    }

    fn postfix(&mut self, mut of: Tree) -> Result<Tree, Refused> {
        loop {
            let offset = self.offset();
            let (index, absent) = if self.take("[") {
                (self.index()?, Absent::IsAnError)
            } else if self.take(".") {
                (self.member()?, Absent::IsAnError)
            } else if self.take("?.") {
                let index = if self.take("[") { self.index()? } else { self.member()? };
                (index, Absent::IsNil)
            } else if matches!(self.kind(), Kind::Sign("(")) {
                return Err(unavailable(offset, "calling a value", "only functions can be called"));
            } else {
                return Ok(of);
            };
            of = Tree { part: Part::Index { of: Box::new(of), index: Box::new(index), absent }, offset };
        }
    }

    fn index(&mut self) -> Result<Tree, Refused> {
        self.count_term()?;
        let index = self.nested(|parser| parser.expression(0))?;
        if let Kind::Sign(":") = self.kind() {
            return Err(unavailable(self.offset(), "a slice", "compare with startsWith or endsWith"));
        }
        self.expect("]", "\"]\"")?;
        Ok(index)
    }

    fn member(&mut self) -> Result<Tree, Refused> {
        self.count_term()?;
        let offset = self.offset();
        let Kind::Word(word) = self.kind() else {
            return Err(self.unexpected("the name of a member"));
        };
        let literal = Value::Text(word.clone());
        self.advance();
        if let Kind::Sign("(") = self.kind() {
            return Err(unavailable(offset, "a method call", "write the call as name(value)"));
        }
        Ok(Tree { part: Part::Literal(literal), offset })
    }
}

/// Checks what can be known before evaluation, so that a mistake is found when the specification is packed.
fn check_call(function: Function, arguments: &[Tree], offset: usize) -> Result<Option<Pattern>, Refused> {
    let (_, expected) = function.signature();
    if !function.takes(arguments.len()) {
        let found = match arguments.len() {
            0 => "none".to_owned(),
            count => format!("{count} arguments"),
        };
        return Err((offset, Problem::Arguments { function: function.name(), expected, found }));
    }
    let mut pattern = None;
    for argument in arguments {
        let at = |problem| (argument.offset, problem);
        let Part::Literal(literal) = &argument.part else {
            continue;
        };
        function.check_argument(literal).map_err(at)?;
        if let (Function::Identity, Value::Text(text)) = (function, literal) {
            pattern = Some(Pattern::compile(text).map_err(at)?);
        }
    }
    Ok(pattern)
}
