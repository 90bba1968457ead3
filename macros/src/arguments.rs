//! Arguments: what stands in the parentheses of the attribute, and the runtime that it asks for.

use proc_macro::{Delimiter, Span, TokenStream, TokenTree};

use crate::error::Error;

/// The most workers that `runtime::Builder::worker_threads` takes.
const MAX_WORKERS: usize = 1024;

/// The most seeds of a test.
const MAX_SEEDS: usize = 1_000_000;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Attribute {
    Main,
    Test,
}

impl Attribute {
    /// As messages quote it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Attribute::Main => "`#[kittiwake::main]`",
            Attribute::Test => "`#[kittiwake::test]`",
        }
    }

    fn takes(self) -> &'static str {
        match self {
            Attribute::Main => "`worker_threads = 4`, `current_thread` and `crate = \"name\"`",
            Attribute::Test => "`start_paused`, `worker_threads = 2`, `seeds = 20` and `crate = \"name\"`",
        }
    }
}

/// The name of the parameter that is a seed. The function under test may have any likely name.
pub(crate) const SEED: &str = "__kittiwake_seed";

pub(crate) struct Arguments {
    attribute: Attribute,
    worker_threads: Option<usize>,
    current_thread: bool,
    start_paused: bool,
    /// How many seeds the test runs under.
    seeds: Option<usize>,
    /// The path of this crate.
    path: TokenStream,
}

impl Arguments {
    /// Reads all arguments. Mistakes are added to `errors`.
    pub(crate) fn parse(attribute: Attribute, tokens: TokenStream, errors: &mut Vec<Error>) -> Self {
        let path = call_site_tokens("::kittiwake");
        let (worker_threads, seeds) = (None, None);
        let mut arguments = Self { attribute, worker_threads, current_thread: false, start_paused: false, seeds, path };
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut names: Vec<String> = Vec::new();
        let mut rest = &tokens[..];
        while !rest.is_empty() {
            let end = rest.iter().position(|token| is_sign(token, ',')).unwrap_or(rest.len());
            // The comma, for an argument that is empty.
            let place = rest[end.min(rest.len() - 1)].span();
            let (argument, after) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
            if let Err(error) = arguments.parse_one(argument, place, &mut names) {
                errors.push(error);
            }
            rest = after;
        }
        arguments
    }

    /// Reads `name` or `name = value`. `names` are those that came before it.
    fn parse_one(&mut self, argument: &[TokenTree], place: Span, names: &mut Vec<String>) -> Result<(), Error> {
        let takes = format!("{} takes {}", self.attribute.name(), self.attribute.takes());
        let (Some(TokenTree::Ident(name)), value) = (argument.first(), argument.get(1..).unwrap_or_default()) else {
            return Err(Error::across(argument, place, format!("this is no argument: {takes}")));
        };
        let (text, place) = (name.to_string(), name.span());
        let value = match value {
            [] => None,
            [equals, value @ ..] if is_sign(equals, '=') => Some(value),
            _ => return Err(Error::across(argument, place, format!("this is no argument: {takes}"))),
        };
        match text.as_str() {
            "worker_threads" => self.worker_threads = Some(number(&text, value, place, MAX_WORKERS, 4)?),
            "current_thread" => self.current_thread = flag(&text, value, place)?,
            "start_paused" if self.attribute == Attribute::Test => self.start_paused = flag(&text, value, place)?,
            "seeds" if self.attribute == Attribute::Test => {
                self.seeds = Some(number(&text, value, place, MAX_SEEDS, 20)?);
            }
            "crate" => self.path = path(value, place)?,
            "start_paused" | "seeds" => {
                return Err(Error::across(argument, place, format!("only `#[kittiwake::test]` takes `{text}`")));
            }
            // tokio's name.
            "flavor" => {
                let write = "write `current_thread`, or `worker_threads = 4` for a multi-thread runtime";
                return Err(Error::across(argument, place, format!("there is no argument `flavor`: {write}")));
            }
            _ => return Err(Error::at(place, format!("there is no argument `{text}`: {takes}"))),
        }
        if names.contains(&text) {
            return Err(Error::across(argument, place, format!("`{text}` stands here twice")));
        }
        names.push(text);
        let excluded = match (self.worker_threads, self.current_thread, self.start_paused) {
            (Some(_), true, _) => "a `current_thread` runtime has no worker threads: remove one of both arguments",
            (Some(_), _, true) => {
                "a clock that starts paused needs a runtime without `worker_threads`: remove one of both"
            }
            _ => return Ok(()),
        };
        Err(Error::across(argument, place, excluded))
    }

    /// How many seeds the test runs under. `None` if the function runs once, without a seed.
    pub(crate) fn seeds(&self) -> Option<usize> {
        self.seeds
    }

    /// The path of an item of this crate.
    pub(crate) fn item(&self, path: &str) -> TokenStream {
        self.path.clone().into_iter().chain(call_site_tokens(path)).collect()
    }

    /// The expression that makes the runtime.
    pub(crate) fn runtime(&self) -> TokenStream {
        let kind = match (self.attribute, self.worker_threads) {
            (_, Some(count)) => format!("new_multi_thread().worker_threads({count}usize)"),
            (Attribute::Main, None) if !self.current_thread => "new_multi_thread()".to_owned(),
            _ => "new_current_thread()".to_owned(),
        };
        let clock = if self.start_paused { ".start_paused(true)" } else { "" };
        let failed = format!("{}: no runtime can be made", self.attribute.name());
        let seed = if self.seeds.is_some() { format!(".rng_seed({SEED})") } else { String::new() };
        self.item(&format!("::runtime::Builder::{kind}{clock}{seed}.build().expect({failed:?})"))
    }
}

/// A value from 1 to `max`, such as `example`.
fn number(name: &str, value: Option<&[TokenTree]>, place: Span, max: usize, example: usize) -> Result<usize, Error> {
    let literal = value.and_then(single).map(|token| token.to_string().replace('_', ""));
    let number = literal.and_then(|text| text.strip_suffix("usize").unwrap_or(&text).parse().ok());
    match number {
        Some(number) if (1..=max).contains(&number) => Ok(number),
        _ => {
            let message = format!("`{name}` needs a number from 1 to {max}, for example `{name} = {example}`");
            Err(Error::across(value.unwrap_or_default(), place, message))
        }
    }
}

/// The value of an argument that is given or not.
fn flag(name: &str, value: Option<&[TokenTree]>, place: Span) -> Result<bool, Error> {
    let Some(value) = value else { return Ok(true) };
    match single(value).map(|token| token.to_string()).as_deref() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(Error::across(value, place, format!("write `{name}`, `{name} = true` or `{name} = false`"))),
    }
}

/// The path in the value of `crate`, at the place of the value.
fn path(value: Option<&[TokenTree]>, place: Span) -> Result<TokenStream, Error> {
    let literal = value.and_then(single);
    let text = literal.as_ref().map(ToString::to_string).unwrap_or_default();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default();
    let is_word = |word: &str| {
        let word = word.strip_prefix("r#").unwrap_or(word);
        word.starts_with(|sign: char| sign.is_alphabetic() || sign == '_')
            && word.chars().all(|sign| sign.is_alphanumeric() || sign == '_')
    };
    match (literal, text.strip_prefix("::").unwrap_or(text).split("::").all(is_word)) {
        (Some(literal), true) => {
            Ok(call_site_tokens(text).into_iter().map(|token| moved(token, literal.span())).collect())
        }
        _ => {
            let message = "`crate` needs the path of kittiwake in quotes, for example `crate = \"name\"`";
            Err(Error::across(value.unwrap_or_default(), place, message))
        }
    }
}

/// The only token, also if it comes from the parameter of a `macro_rules!` macro, which puts it into a group.
fn single(tokens: &[TokenTree]) -> Option<TokenTree> {
    match tokens {
        [TokenTree::Group(group)] if group.delimiter() == Delimiter::None => {
            single(&group.stream().into_iter().collect::<Vec<_>>())
        }
        [token] => Some(token.clone()),
        _ => None,
    }
}

fn moved(mut token: TokenTree, span: Span) -> TokenTree {
    token.set_span(span);
    token
}

fn is_sign(token: &TokenTree, sign: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign)
}

/// The tokens of `text`, at the place of the attribute.
pub(crate) fn call_site_tokens(text: &str) -> TokenStream {
    text.parse().expect("the macro's own tokens")
}
