//~ never: block_on

#[kittiwake::main]
async fn number() -> u8 {
    // Each error is at its own place.
    "text"
//~ ^ expected `u8`, found `&str`
}

#[kittiwake::main]
async fn no_result() -> std::io::Result<()> {
//~                                         ^ expected `Result<(), Error>`, found `()`
    std::io::Write::flush(&mut std::io::stdout())?;
}

#[kittiwake::main]
async fn missing() -> Missing {
//~                   ^ cannot find type `Missing`
    todo!()
}

#[kittiwake::main(crate = "elsewhere")]
//~                       ^ cannot find module or crate `elsewhere`
async fn wrong_path() {}

#[kittiwake::main]
async fn main() -> u8 {
//~                ^ `main` has invalid return type `u8`
    1
}
