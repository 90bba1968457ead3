//! Function: parses the function below the attribute, and makes the functions that replace it.

use proc_macro::{Delimiter, Group, Ident, Literal, Span, TokenStream, TokenTree};

use crate::arguments::{Arguments, Attribute, SEED, call_site_tokens};
use crate::error::Error;

pub(crate) struct Function {
    /// The attributes below ours, each a `#` and a group.
    attributes: Vec<[TokenTree; 2]>,
    visibility: TokenStream,
    /// The keyword `fn`.
    keyword: TokenTree,
    name: Ident,
    /// The arrow, the return type and the `where` clause.
    output: TokenStream,
    /// The function as it is written, without its attributes and its visibility.
    item: TokenStream,
}

impl Function {
    /// Reads the function. Mistakes are added to `errors`. Returns `None` if it is no function with a body.
    pub(crate) fn parse(attribute: Attribute, item: TokenStream, errors: &mut Vec<Error>) -> Option<Self> {
        let tokens = ungrouped(item);
        let (mut attributes, rest) = attributes(&tokens);
        let (visibility, rest) = visibility(rest);
        let Some(signature) = Signature::parse(rest) else {
            let needs = format!("{} needs an `async fn` with a body", attribute.name());
            errors.push(Error::across(rest, Span::call_site(), needs));
            return None;
        };
        errors.extend(signature.errors(attribute));
        if attribute == Attribute::Test {
            // With a second one the test would run twice.
            let tests: Vec<_>;
            (tests, attributes) = attributes.into_iter().partition(|[_, group]| is_test(group));
            let message = "remove this attribute: `#[kittiwake::test]` makes the function a test";
            errors.extend(tests.iter().map(|[_, group]| Error::at(group.span(), message)));
        }
        Some(Self {
            attributes,
            visibility: visibility.iter().cloned().collect(),
            keyword: signature.keyword.clone(),
            name: signature.name.clone(),
            output: signature.output.iter().cloned().collect(),
            item: rest.iter().cloned().collect(),
        })
    }

    /// A function that is not `async`: it blocks on this one in a runtime. A test with seeds does so once for each
    /// seed.
    pub(crate) fn around_call(self, attribute: Attribute, arguments: &Arguments) -> TokenStream {
        // These lints would report the inner function, of which the caller knows nothing.
        let lints = "clippy::missing_docs_in_private_items, clippy::single_call_fn, clippy::unused_async";
        let mut body = call_site_tokens(&format!("#[allow({lints})]"));
        body.extend(self.item.clone());
        let mut run = arguments.runtime();
        run.extend(call_site_tokens(".block_on"));
        let call = [self.name.clone().into(), group(Delimiter::Parenthesis, TokenStream::new())];
        run.extend([group(Delimiter::Parenthesis, call.into_iter().collect())]);
        let Some(count) = arguments.seeds() else {
            body.extend(run);
            return self.outer(attribute, self.output.clone(), body);
        };
        let name = self.name.to_string();
        let mut parameters: TokenStream = TokenTree::from(Literal::usize_unsuffixed(count)).into();
        parameters.extend(call_site_tokens(&format!(", {:?}, |{SEED}|", name.strip_prefix("r#").unwrap_or(&name))));
        parameters.extend(run);
        // The loop takes the result of the body, to know whether the seed has failed. A body without a result makes a
        // function without one: the harness of the tests allows `#[should_panic]` on no other.
        let output = self.output.to_string().replace(' ', "");
        let has_result = !matches!(&*output, "" | "->()");
        let (output, begin, end) =
            if has_result { ("-> ::std::process::ExitCode", "", "") } else { ("", "let _ =", ";") };
        body.extend(call_site_tokens(begin));
        body.extend(arguments.item("::seeds::run"));
        body.extend([group(Delimiter::Parenthesis, parameters)]);
        body.extend(call_site_tokens(end));
        self.outer(attribute, call_site_tokens(output), body)
    }

    /// The errors, and the function so that it is checked too, and that its name exists.
    pub(crate) fn after_errors(self, attribute: Attribute, errors: &[Error]) -> TokenStream {
        let outer = self.outer(attribute, TokenStream::new(), self.item.clone());
        errors.iter().map(Error::to_tokens).chain([outer]).collect()
    }

    fn outer(&self, attribute: Attribute, output: TokenStream, body: TokenStream) -> TokenStream {
        let mut outer: Vec<TokenTree> = self.attributes.iter().flatten().cloned().collect();
        if attribute == Attribute::Test {
            outer.extend(call_site_tokens("#[::core::prelude::v1::test]"));
        }
        outer.extend(self.visibility.clone());
        outer.extend([self.keyword.clone(), self.name.clone().into()]);
        outer.push(group(Delimiter::Parenthesis, TokenStream::new()));
        outer.extend(output);
        outer.push(group(Delimiter::Brace, body));
        outer.into_iter().collect()
    }
}

/// The parts of `async fn name<generics>(parameters) -> output where .. { .. }`.
struct Signature<'a> {
    /// All that stands before `fn`.
    qualifiers: &'a [TokenTree],
    keyword: &'a TokenTree,
    name: &'a Ident,
    generics: &'a [TokenTree],
    parameters: &'a Group,
    output: &'a [TokenTree],
}

impl<'a> Signature<'a> {
    fn parse(tokens: &'a [TokenTree]) -> Option<Self> {
        let (qualifiers, rest) = tokens.split_at(tokens.iter().position(|token| is_word(token, "fn"))?);
        let is_qualifier = |token: &TokenTree| matches!(token, TokenTree::Ident(_) | TokenTree::Literal(_));
        let ([keyword, TokenTree::Ident(name), rest @ ..], true) = (rest, qualifiers.iter().all(is_qualifier)) else {
            return None;
        };
        let (generics, rest) = rest.split_at(length_of_generics(rest));
        let ([TokenTree::Group(parameters), rest @ ..], [.., body]) = (rest, rest) else { return None };
        if !is_body(body) {
            return None;
        }
        let output = &rest[..rest.len() - 1];
        Some(Self { qualifiers, keyword, name, generics, parameters, output })
    }

    fn errors(&self, attribute: Attribute) -> Vec<Error> {
        let (name, mut errors) = (attribute.name(), Vec::new());
        if !self.qualifiers.iter().any(|token| is_word(token, "async")) {
            let message = format!("{name} needs an `async fn`: write `async` before `fn`");
            errors.push(Error::at(self.keyword.span(), message));
        }
        if let Some(other) = self.qualifiers.iter().find(|token| !is_word(token, "async")) {
            errors.push(Error::at(other.span(), format!("{name} allows no `{other}` here: remove it")));
        }
        if !self.generics.is_empty() {
            let message = format!("{name} allows no generic parameters: remove them");
            errors.push(Error::across(self.generics, self.name.span(), message));
        }
        let parameters: Vec<TokenTree> = self.parameters.stream().into_iter().collect();
        if !parameters.is_empty() {
            let message = format!("{name} allows no parameters, because it calls the function without arguments");
            errors.push(Error::across(&parameters, self.name.span(), message));
        }
        errors
    }
}

/// The attributes at the beginning of an item, and the tokens after them.
fn attributes(mut tokens: &[TokenTree]) -> (Vec<[TokenTree; 2]>, &[TokenTree]) {
    let mut attributes = Vec::new();
    while let [TokenTree::Punct(pound), TokenTree::Group(group), rest @ ..] = tokens {
        attributes.push([pound.clone().into(), group.clone().into()]);
        tokens = rest;
    }
    (attributes, tokens)
}

/// The visibility at the beginning of `tokens`, and the tokens after it. A `macro_rules!` macro puts it into a group.
fn visibility(tokens: &[TokenTree]) -> (&[TokenTree], &[TokenTree]) {
    let length = match tokens {
        [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::None => 1,
        [public, TokenTree::Group(_), ..] if is_word(public, "pub") => 2,
        [public, ..] if is_word(public, "pub") => 1,
        _ => 0,
    };
    tokens.split_at(length)
}

/// The number of tokens from `<` to its `>`. The `>` of an arrow closes nothing.
fn length_of_generics(tokens: &[TokenTree]) -> usize {
    let (mut depth, mut before) = (0_usize, ' ');
    for (at, token) in tokens.iter().enumerate() {
        let sign = if let TokenTree::Punct(punct) = token { punct.as_char() } else { ' ' };
        match sign {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return if at == 0 { 0 } else { at + 1 };
        }
        before = sign;
    }
    0
}

/// Whether this is a block. A `macro_rules!` macro puts it into a group.
fn is_body(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    match group.delimiter() {
        Delimiter::Brace => true,
        Delimiter::None => matches!(&group.stream().into_iter().collect::<Vec<_>>()[..], [body] if is_body(body)),
        _ => false,
    }
}

/// Whether an attribute is `#[test]` or a path that ends with it, such as `#[kittiwake::test]`.
fn is_test(attribute: &TokenTree) -> bool {
    let TokenTree::Group(group) = attribute else { return false };
    let is_path = |token: &TokenTree| match token {
        TokenTree::Ident(_) => true,
        TokenTree::Punct(punct) => punct.as_char() == ':',
        _ => false,
    };
    group.stream().into_iter().take_while(is_path).last().is_some_and(|token| is_word(&token, "test"))
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident.to_string() == word)
}

/// The tokens of an item. A `macro_rules!` macro may put all of them into a group.
fn ungrouped(item: TokenStream) -> Vec<TokenTree> {
    let tokens: Vec<TokenTree> = item.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Group(group)] if group.delimiter() == Delimiter::None => ungrouped(group.stream()),
        _ => tokens,
    }
}

fn group(delimiter: Delimiter, tokens: TokenStream) -> TokenTree {
    Group::new(delimiter, tokens).into()
}
