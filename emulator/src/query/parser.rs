//! From tokens to a query. An error says where, what was found, and what was expected.

use super::functions::Function;
use super::lexer::{Token, tokens};
use super::{
    Aggregate, Arithmetic, Column, ColumnValue, Columns, Comparison, Expr, Literal, Path, Query, QueryError,
    Source,
};

/// Most levels of parentheses, functions and negations: evaluation recurses over them.
const DEPTH_MAX: usize = 50;

/// The names that the hub defines in a twin and in a device's job, which are found without regard to case
/// (IoT Hub documentation: `SELECT DeviceId` gives `deviceId`).
const TWIN_NAMES: [&str; 20] = [
    "deviceId",
    "moduleId",
    "etag",
    "deviceEtag",
    "version",
    "status",
    "statusReason",
    "statusUpdateTime",
    "connectionState",
    "lastActivityTime",
    "cloudToDeviceMessageCount",
    "authenticationType",
    "x509Thumbprint",
    "modelId",
    "capabilities",
    "deviceScope",
    "parentScopes",
    "tags",
    "properties",
    "configurations",
];
const JOB_NAMES: [&str; 9] = [
    "deviceId",
    "moduleId",
    "jobId",
    "jobType",
    "status",
    "startTimeUtc",
    "endTimeUtc",
    "createdDateTimeUtc",
    "lastUpdatedDateTimeUtc",
];
/// Words that can't begin a path unless they are in double brackets.
const KEYWORDS: [&str; 14] = [
    "select", "top", "from", "where", "group", "by", "as", "and", "or", "not", "in", "nin", "distinct",
    "order",
];

pub(super) struct Parser {
    tokens: std::vec::IntoIter<(usize, Token)>,
    position: usize,
    token: Token,
    depth: usize,
    source: Source,
}

type Parsed<T> = Result<T, QueryError>;

impl Parser {
    pub(super) fn new(text: &str) -> Parsed<Self> {
        let mut parser = Self {
            tokens: tokens(text)?.into_iter(),
            position: 1,
            token: Token::End,
            depth: 0,
            source: Source::Devices,
        };
        parser.advance();
        Ok(parser)
    }

    pub(super) fn query(mut self) -> Parsed<Query> {
        self.expect_word("select")?;
        let top = if self.take_word("top") { Some(self.whole_number()?) } else { None };
        let select_at = self.position;
        let mut columns = self.columns()?;
        self.source = self.source()?;
        if let Columns::Some(columns) = &mut columns {
            for column in columns {
                self.fit(column);
            }
        }
        let condition = if self.take_word("where") { Some(self.condition()?) } else { None };
        let group_by = if self.take_word("group") { self.group_by()? } else { Vec::new() };
        self.expect_end()?;
        let query = Query { source: self.source, columns, condition, group_by, top };
        check_columns(&query).map_err(|problem| QueryError { position: select_at, problem })?;
        Ok(query)
    }

    pub(super) fn condition_only(mut self) -> Parsed<Query> {
        if self.token == Token::End || self.take_symbol("*") {
            self.expect_end()?;
            return Ok(Query::all(Source::Devices));
        }
        if self.is_word("from") {
            self.source = self.source()?;
            if self.source == Source::Jobs {
                return self.error("a condition is about devices or devices.modules");
            }
            if !self.take_word("where") {
                self.expect_end()?;
                return Ok(Query::all(self.source));
            }
        }
        let condition = Some(self.condition()?);
        self.expect_end()?;
        Ok(Query { condition, ..Query::all(self.source) })
    }

    fn columns(&mut self) -> Parsed<Columns> {
        if self.take_symbol("*") {
            return Ok(Columns::All);
        }
        let mut columns = vec![self.column(1)?];
        while self.take_symbol(",") {
            columns.push(self.column(columns.len() + 1)?);
        }
        Ok(Columns::Some(columns))
    }

    fn column(&mut self, ordinal: usize) -> Parsed<Column> {
        let (position, first) = (self.position, self.name("a property or an aggregate")?);
        let value = if self.take_symbol("(") {
            let value = match first.to_ascii_lowercase().as_str() {
                "count" => ColumnValue::Count,
                "sum" => ColumnValue::Aggregate(Aggregate::Sum, self.path()?),
                "avg" => ColumnValue::Aggregate(Aggregate::Avg, self.path()?),
                "min" => ColumnValue::Aggregate(Aggregate::Min, self.path()?),
                "max" => ColumnValue::Aggregate(Aggregate::Max, self.path()?),
                _ => {
                    let problem = format!("{first} is no aggregate; expected COUNT, SUM, AVG, MIN or MAX");
                    return Err(QueryError { position, problem });
                }
            };
            self.expect_symbol(")")?;
            value
        } else {
            ColumnValue::Path(self.rest_of_path(first)?)
        };
        let name = if self.take_word("as") { self.name("an alias")? } else { String::new() };
        // An aggregate without an alias is named by its place, as in Cosmos DB.
        let name = match (&value, name.is_empty()) {
            (ColumnValue::Count | ColumnValue::Aggregate(..), true) => format!("${ordinal}"),
            (ColumnValue::Path(_), true) | (_, false) => name,
        };
        Ok(Column { name, value })
    }

    /// Gives a column the names of its collection, which stands behind it in the text.
    fn fit(&self, column: &mut Column) {
        match &mut column.value {
            ColumnValue::Path(path) | ColumnValue::Aggregate(_, path) => {
                *path = self.spelled(std::mem::take(&mut path.0))
            }
            ColumnValue::Count => {}
        }
        if let (ColumnValue::Path(path), true) = (&column.value, column.name.is_empty()) {
            column.name = path.last().to_owned();
        }
    }

    fn source(&mut self) -> Parsed<Source> {
        self.expect_word("from")?;
        if !self.take_word("devices") {
            return self.error("devices, devices.modules or devices.jobs");
        }
        if !self.take_symbol(".") {
            return Ok(Source::Devices);
        }
        if self.take_word("modules") {
            return Ok(Source::Modules);
        }
        if self.take_word("jobs") { Ok(Source::Jobs) } else { self.error("modules or jobs") }
    }

    fn group_by(&mut self) -> Parsed<Vec<Path>> {
        self.expect_word("by")?;
        let mut paths = vec![self.path()?];
        while self.take_symbol(",") {
            paths.push(self.path()?);
        }
        Ok(paths)
    }

    fn condition(&mut self) -> Parsed<Expr> {
        let mut parts = vec![self.conjunction()?];
        while self.take_word("or") {
            parts.push(self.conjunction()?);
        }
        Ok(if parts.len() > 1 { Expr::Or(parts) } else { parts.remove(0) })
    }

    fn conjunction(&mut self) -> Parsed<Expr> {
        let mut parts = vec![self.negation()?];
        while self.take_word("and") {
            parts.push(self.negation()?);
        }
        Ok(if parts.len() > 1 { Expr::And(parts) } else { parts.remove(0) })
    }

    fn negation(&mut self) -> Parsed<Expr> {
        if self.take_word("not") {
            return self.deeper(|parser| Ok(Expr::Not(Box::new(parser.negation()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let left = self.sum()?;
        const COMPARISONS: [(&str, Comparison); 7] = [
            ("=", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<>", Comparison::NotEqual),
            ("<", Comparison::Less),
            ("<=", Comparison::LessOrEqual),
            (">", Comparison::Greater),
            (">=", Comparison::GreaterOrEqual),
        ];
        if let Some((_, comparison)) = COMPARISONS.into_iter().find(|(symbol, _)| self.take_symbol(symbol)) {
            return Ok(Expr::Compare(Box::new(left), comparison, Box::new(self.sum()?)));
        }
        let is_not = self.take_word("not");
        if is_not && !self.is_word("in") {
            return self.error("IN");
        }
        let negated = is_not || self.is_word("nin");
        if self.take_word("in") || self.take_word("nin") {
            return Ok(Expr::In { value: Box::new(left), items: self.list()?, negated });
        }
        Ok(left)
    }

    fn list(&mut self) -> Parsed<Vec<Literal>> {
        self.expect_symbol("[")?;
        let mut items = Vec::new();
        if self.take_symbol("]") {
            return Ok(items);
        }
        loop {
            let negative = self.take_symbol("-");
            items.push(match self.literal() {
                Some(Literal::Number(number)) if negative => Literal::Number(-number),
                Some(literal) if !negative => literal,
                Some(_) | None => return self.error("a constant"),
            });
            if !self.take_symbol(",") {
                self.expect_symbol("]")?;
                return Ok(items);
            }
        }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.chain(&[("+", Arithmetic::Add), ("-", Arithmetic::Subtract)], Self::product)
    }

    fn product(&mut self) -> Parsed<Expr> {
        let operators =
            [("*", Arithmetic::Multiply), ("/", Arithmetic::Divide), ("%", Arithmetic::Remainder)];
        self.chain(&operators, Self::unary)
    }

    fn chain(
        &mut self,
        operators: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Parsed<Expr>,
    ) -> Parsed<Expr> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.take_symbol(symbol)) {
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Arithmetic(Box::new(first), rest) })
    }

    fn unary(&mut self) -> Parsed<Expr> {
        if self.take_symbol("-") {
            return self.deeper(|parser| Ok(Expr::Negative(Box::new(parser.unary()?))));
        }
        if self.take_symbol("(") {
            let inner = self.deeper(Self::condition)?;
            self.expect_symbol(")")?;
            return Ok(inner);
        }
        if let Some(literal) = self.literal() {
            return Ok(Expr::Literal(literal));
        }
        let (position, first) = (self.position, self.name("a property, a constant or a function")?);
        if !self.take_symbol("(") {
            let path = self.rest_of_path(first)?;
            return Ok(Expr::Path(self.spelled(path.0)));
        }
        let Some(function) = Function::find(&first) else {
            return Err(QueryError { position, problem: format!("there is no function {first}") });
        };
        let arguments = self.deeper(Self::arguments)?;
        if !function.arity().contains(&arguments.len()) {
            let problem = format!("{first} does not take {} arguments", arguments.len());
            return Err(QueryError { position, problem });
        }
        Ok(Expr::Call(function, arguments))
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        let mut arguments = Vec::new();
        if self.take_symbol(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.condition()?);
            if !self.take_symbol(",") {
                self.expect_symbol(")")?;
                return Ok(arguments);
            }
        }
    }

    /// A constant, if there is one next.
    fn literal(&mut self) -> Option<Literal> {
        let literal = match &self.token {
            Token::Number(number) => Literal::Number(*number),
            Token::Text(text) => Literal::Text(text.clone()),
            Token::Word(word) => match word.to_ascii_lowercase().as_str() {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                "null" => Literal::Null,
                "undefined" => Literal::Undefined,
                _ => return None,
            },
            Token::Bracketed(_) | Token::Symbol(_) | Token::End => return None,
        };
        self.advance();
        Some(literal)
    }

    fn path(&mut self) -> Parsed<Path> {
        let first = self.name("a property")?;
        let path = self.rest_of_path(first)?;
        Ok(self.spelled(path.0))
    }

    fn rest_of_path(&mut self, first: String) -> Parsed<Path> {
        let mut names = vec![first];
        while self.take_symbol(".") {
            // Behind a dot even a keyword is a name.
            match std::mem::replace(&mut self.token, Token::End) {
                Token::Word(name) | Token::Bracketed(name) => names.push(name),
                other @ (Token::Number(_) | Token::Text(_) | Token::Symbol(_) | Token::End) => {
                    self.token = other;
                    return self.error("a property");
                }
            }
            self.advance();
        }
        Ok(Path(names))
    }

    /// A name that begins something.
    fn name(&mut self, expected: &str) -> Parsed<String> {
        let name = match &self.token {
            Token::Word(word) if !KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(word)) => {
                word.clone()
            }
            Token::Bracketed(name) => name.clone(),
            Token::Word(_) | Token::Number(_) | Token::Text(_) | Token::Symbol(_) | Token::End => {
                return self.error(expected);
            }
        };
        self.advance();
        Ok(name)
    }

    /// A path of this collection: without the collection's own name, and with the hub's names in its spelling.
    fn spelled(&self, mut names: Vec<String>) -> Path {
        let is = |name: Option<&String>, word: &str| name.is_some_and(|name| name.eq_ignore_ascii_case(word));
        let prefix: &[&str] = match self.source {
            Source::Devices => &["devices"],
            Source::Modules => &["devices", "modules"],
            Source::Jobs => &["devices", "jobs"],
        };
        if names.len() > prefix.len() && prefix.iter().enumerate().all(|(at, word)| is(names.get(at), word)) {
            names.drain(..prefix.len());
        }
        let respell = |name: Option<&mut String>, known: &[&str]| {
            if let Some(name) = name
                && let Some(known) = known.iter().find(|known| known.eq_ignore_ascii_case(name))
            {
                *name = (*known).to_owned();
            }
        };
        match self.source {
            Source::Devices | Source::Modules => {
                respell(names.first_mut(), &TWIN_NAMES);
                if is(names.first(), "properties") {
                    respell(names.get_mut(1), &["desired", "reported"]);
                }
            }
            Source::Jobs => {
                // The documentation's own query says createdTimeUtc, its own document createdDateTimeUtc.
                if is(names.first(), "createdTimeUtc") {
                    names = vec!["createdDateTimeUtc".to_owned()];
                }
                respell(names.first_mut(), &JOB_NAMES);
            }
        }
        Path(names)
    }

    fn whole_number(&mut self) -> Parsed<u64> {
        if let Token::Number(number) = self.token
            && number >= 1.0
            && number.fract() == 0.0
        {
            self.advance();
            return Ok(number as u64);
        }
        self.error("a whole number from 1")
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEPTH_MAX {
            let problem = format!("it is nested more than {DEPTH_MAX} deep");
            return Err(QueryError { position: self.position, problem });
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn advance(&mut self) {
        if let Some((position, token)) = self.tokens.next() {
            (self.position, self.token) = (position, token);
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.token, Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let taken = self.is_word(word);
        if taken {
            self.advance();
        }
        taken
    }

    fn expect_word(&mut self, word: &str) -> Parsed<()> {
        if self.take_word(word) { Ok(()) } else { self.error(&word.to_ascii_uppercase()) }
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let taken = matches!(self.token, Token::Symbol(found) if found == symbol);
        if taken {
            self.advance();
        }
        taken
    }

    fn expect_symbol(&mut self, symbol: &str) -> Parsed<()> {
        if self.take_symbol(symbol) { Ok(()) } else { self.error(symbol) }
    }

    fn expect_end(&self) -> Parsed<()> {
        if self.token == Token::End { Ok(()) } else { self.error("an operator, the next clause or the end") }
    }

    fn error<T>(&self, expected: &str) -> Parsed<T> {
        let problem = format!("expected {expected}, found {}", self.token.shown());
        Err(QueryError { position: self.position, problem })
    }
}

/// Rules over the whole of a query (IoT Hub documentation, limitations).
fn check_columns(query: &Query) -> Result<(), String> {
    let is_plain = matches!(query.columns, Columns::All) && query.group_by.is_empty();
    if query.source == Source::Jobs && !is_plain {
        return Err("of devices.jobs only SELECT * without GROUP BY is possible".to_owned());
    }
    let Columns::Some(columns) = &query.columns else {
        return if is_plain { Ok(()) } else { Err("GROUP BY needs columns, not *".to_owned()) };
    };
    if !query.is_aggregate() {
        return Ok(());
    }
    for column in columns {
        if let ColumnValue::Path(path) = &column.value
            && !query.group_by.contains(path)
        {
            return Err(format!("{path} is neither an aggregate nor in GROUP BY"));
        }
    }
    Ok(())
}
