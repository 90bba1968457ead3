//! Error: a message for the compiler to print, at a place in the source.

use proc_macro::{Delimiter, Group, Ident, Literal, Punct, Spacing, Span, TokenStream, TokenTree};

pub(crate) struct Error {
    first: Span,
    last: Span,
    message: String,
}

impl Error {
    /// An error at one token.
    pub(crate) fn at(span: Span, message: impl Into<String>) -> Self {
        Self { first: span, last: span, message: message.into() }
    }

    /// An error at a range of tokens, or at `otherwise` if the range is empty.
    pub(crate) fn across(tokens: &[TokenTree], otherwise: Span, message: impl Into<String>) -> Self {
        let (first, last) = (tokens.first().map(TokenTree::span), tokens.last().map(TokenTree::span));
        Self { first: first.unwrap_or(otherwise), last: last.unwrap_or(otherwise), message: message.into() }
    }

    /// `::core::compile_error! { "message" }`. The compiler prints it from the place of the first of these tokens to the
    /// place of the last.
    pub(crate) fn to_tokens(&self) -> TokenStream {
        let colon = |spacing| punct(':', spacing, self.first);
        let word = |word| TokenTree::from(Ident::new(word, self.first));
        let mut message = Literal::string(&self.message);
        message.set_span(self.last);
        let mut braces = Group::new(Delimiter::Brace, TokenTree::from(message).into());
        braces.set_span(self.last);
        TokenStream::from_iter([
            colon(Spacing::Joint),
            colon(Spacing::Alone),
            word("core"),
            colon(Spacing::Joint),
            colon(Spacing::Alone),
            word("compile_error"),
            punct('!', Spacing::Alone, self.first),
            braces.into(),
        ])
    }
}

fn punct(sign: char, spacing: Spacing, span: Span) -> TokenTree {
    let mut punct = Punct::new(sign, spacing);
    punct.set_span(span);
    punct.into()
}
