//! Takes a query apart into tokens.

use super::{QUERY_LEN_MAX, QueryError};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A name or keyword.
    Word(String),
    /// `[[name]]`: a name with characters that would otherwise mean something.
    Bracketed(String),
    Number(f64),
    Text(String),
    /// An operator or a bracket.
    Symbol(&'static str),
    End,
}

impl Token {
    /// How an error quotes it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Bracketed(name) => format!("[[{name}]]"),
            Self::Number(number) => number.to_string(),
            Self::Text(_) => "a string".to_owned(),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

/// Longer ones first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 17] =
    ["<=", ">=", "<>", "!=", "=", "<", ">", "(", ")", "[", "]", ",", ".", "*", "+", "-", "/"];

/// The tokens with their positions, counted in characters from 1. The last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, QueryError> {
    if text.chars().count() > QUERY_LEN_MAX {
        let problem = format!("it is longer than {QUERY_LEN_MAX} characters");
        return Err(QueryError { position: QUERY_LEN_MAX + 1, problem });
    }
    let mut lexer = Lexer { rest: text, position: 1 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank()?;
        let position = lexer.position;
        let token = lexer.next()?;
        let is_end = token == Token::End;
        tokens.push((position, token));
        if is_end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    position: usize,
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let taken = chars.next()?;
        self.rest = chars.as_str();
        self.position += 1;
        Some(taken)
    }

    fn take_if(&mut self, prefix: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(prefix) else {
            return false;
        };
        self.rest = rest;
        self.position += prefix.chars().count();
        true
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        self.position += taken.chars().count();
        taken
    }

    fn error<T>(&self, position: usize, problem: &str) -> Result<T, QueryError> {
        Err(QueryError { position, problem: problem.to_owned() })
    }

    /// White space and `/* comments */`.
    fn skip_blank(&mut self) -> Result<(), QueryError> {
        loop {
            self.take_while(char::is_whitespace);
            let start = self.position;
            if !self.take_if("/*") {
                return Ok(());
            }
            while !self.take_if("*/") {
                if self.take().is_none() {
                    return self.error(start, "the comment has no end");
                }
            }
        }
    }

    fn next(&mut self) -> Result<Token, QueryError> {
        let start = self.position;
        let Some(first) = self.peek() else {
            return Ok(Token::End);
        };
        if first.is_alphabetic() || matches!(first, '_' | '$') {
            let word = self.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$'));
            return Ok(Token::Word(word.to_owned()));
        }
        if first.is_ascii_digit() {
            return self.number(start);
        }
        if matches!(first, '\'' | '"') {
            return self.text(start);
        }
        if self.take_if("[[") {
            let Some((name, _)) = self.rest.split_once("]]") else {
                return self.error(start, "[[ has no ]]");
            };
            self.take_if(name);
            self.take_if("]]");
            return Ok(Token::Bracketed(name.to_owned()));
        }
        if self.take_if("%") {
            return Ok(Token::Symbol("%"));
        }
        match SYMBOLS.into_iter().find(|symbol| self.take_if(symbol)) {
            Some(symbol) => Ok(Token::Symbol(symbol)),
            None => self.error(start, &format!("{first:?} means nothing here")),
        }
    }

    /// A decimal number, or a hexadecimal one after `0x`.
    fn number(&mut self, start: usize) -> Result<Token, QueryError> {
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || c == '.');
        let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(|value| value as f64),
            None => {
                // A sign belongs to the number only behind an exponent.
                let mut text = text.to_owned();
                if text.ends_with(['e', 'E']) && self.peek().is_some_and(|c| matches!(c, '+' | '-')) {
                    text.extend(self.take());
                    text.push_str(self.take_while(|c| c.is_ascii_digit()));
                }
                text.parse().ok().filter(|value: &f64| value.is_finite())
            }
        };
        match value {
            Some(value) => Ok(Token::Number(value)),
            None => self.error(start, "this is no number"),
        }
    }

    /// A string in `'…'` or `"…"`. Escapes: `\'`, `\"`, `\\`, `\uXXXX`. A doubled quote, which
    /// other SQLs know, is none of them.
    fn text(&mut self, start: usize) -> Result<Token, QueryError> {
        let quote = self.take();
        let mut text = String::new();
        loop {
            let position = self.position;
            match self.take() {
                None => return self.error(start, "the string has no end"),
                end if end == quote => return Ok(Token::Text(text)),
                Some('\\') => match self.take() {
                    Some(escaped @ ('\'' | '"' | '\\' | '/')) => text.push(escaped),
                    Some('u') => {
                        let digits: String = self.rest.chars().take(4).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                        let Some(escaped) = code.and_then(char::from_u32) else {
                            return self.error(position, "\\u needs four hexadecimal digits of a character");
                        };
                        self.take_if(&digits);
                        text.push(escaped);
                    }
                    _ => return self.error(position, "the escapes are \\' \\\" \\\\ and \\uXXXX"),
                },
                Some(c) => text.push(c),
            }
        }
    }
}
