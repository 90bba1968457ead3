//! Runs a command, and passes our input to it and its output to ours. With `AsyncFd` the pipes need no threads.
//! `cargo run --release --example child -- sort -r`

use std::process::{Command, Stdio};

use kittiwake::io::{self, AsyncFd, AsyncWriteExt};

const USAGE: &str = "usage: child COMMAND [ARGUMENT..]    for example: child sort -r";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        None => fail(USAGE),
        Some("-h" | "--help") => println!("{USAGE}"),
        Some(command) => {
            let code = kittiwake::block_on(run(command, &args[1..]));
            std::process::exit(code.unwrap_or_else(|error| fail(&format!("{command}: {error}"))))
        }
    }
}

fn fail(why: &str) -> ! {
    eprintln!("child: {why}");
    std::process::exit(2)
}

/// Returns the command's exit code, or 1 if a signal has ended it.
async fn run(command: &str, args: &[String]) -> io::Result<i32> {
    let mut child = Command::new(command).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { unreachable!("both are piped") };
    let (mut input, output) = (AsyncFd::new(input)?, AsyncFd::new(output)?);

    // A task of its own: the command may write before it has read all. Dropping the pipe is the end of its input.
    let feeding = kittiwake::spawn(async move { io::copy(io::stdin(), &mut input).await });
    let mut out = io::stdout();
    io::copy(output, &mut out).await?;
    out.flush().await?;
    // The command has closed its output. If it did not want all of our input, that is no error.
    feeding.abort();
    let status = kittiwake::spawn_blocking(move || child.wait()).await??;
    Ok(status.code().unwrap_or(1))
}
