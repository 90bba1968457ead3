//~ says: `#[kittiwake::main]` needs an `async fn`: write `async` before `fn`
//~ never: not allowed to be `async`
//~ never: cannot find

#[kittiwake::main]
async fn parameters(first: u8, _second: u8) {
//~                 ^ `#[kittiwake::main]` allows no parameters, because it calls the function without arguments
    let _: &str = first;
    //~           ^ mismatched types
}

#[kittiwake::main]
async fn generics<F: Fn() -> u8>() -> Vec<F> {
//~              ^ `#[kittiwake::main]` allows no generic parameters: remove them
    Vec::new()
}

#[kittiwake::main]
async unsafe fn unsafety() {}
//~   ^ `#[kittiwake::main]` allows no `unsafe` here: remove it

mod indented {
    #[kittiwake::test]
    fn test() {}
//~ ^ `#[kittiwake::test]` needs an `async fn`: write `async` before `fn`

    #[kittiwake::main]
    struct Structure;
//~ ^ `#[kittiwake::main]` needs an `async fn` with a body

    #[kittiwake::test]
    async fn test_with_parameter(_: u8) {}
    //~                          ^ `#[kittiwake::test]` allows no parameters

    #[kittiwake::test]
    #[test]
//~  ^ remove this attribute: `#[kittiwake::test]` makes the function a test
    async fn two_attributes() {}

    pub(crate) fn structure() -> Structure {
        Structure
    }
}

#[kittiwake::main]
fn main() {
    parameters();
    generics();
    unsafety();
    let _ = indented::structure();
}
