//~ never: cannot find
//~ never: not allowed to be `async`

#[kittiwake::main(threads = 4)]
//~               ^ there is no argument `threads`: `#[kittiwake::main]` takes `worker_threads = 4`, `current_thread` and
async fn unknown() {}

#[kittiwake::main(worker_threads = 0)]
//~                                ^ `worker_threads` needs a number from 1 to 1024, for example `worker_threads = 4`
async fn zero() {}

#[kittiwake::main(worker_threads = 1025)]
//~                                ^ `worker_threads` needs a number from 1 to 1024
async fn too_many() {}

#[kittiwake::main(worker_threads = -1)]
//~                                ^ `worker_threads` needs a number from 1 to 1024
async fn negative() {}

#[kittiwake::main(worker_threads = "4")]
//~                                ^ `worker_threads` needs a number from 1 to 1024
async fn text() {}

#[kittiwake::main(worker_threads)]
//~               ^ `worker_threads` needs a number from 1 to 1024
async fn no_value() {}

#[kittiwake::main(worker_threads = 2, worker_threads = 3)]
//~                                   ^ `worker_threads` stands here twice
async fn twice() {}

#[kittiwake::main(worker_threads = 2, current_thread)]
//~                                   ^ a `current_thread` runtime has no worker threads
async fn both() {}

#[kittiwake::main(flavor = "current_thread")]
//~               ^ there is no argument `flavor`: write `current_thread`
async fn flavor() {}

#[kittiwake::main(start_paused)]
//~               ^ only `#[kittiwake::test]` takes `start_paused`
async fn paused() {}

#[kittiwake::main(seeds = 20)]
//~               ^ only `#[kittiwake::test]` takes `seeds`
async fn seeds_of_main() {}

#[kittiwake::test(seeds = 0)]
//~                       ^ `seeds` needs a number from 1 to 1000000, for example `seeds = 20`
async fn no_seeds() {}

#[kittiwake::test(seeds = 1_000_001)]
//~                       ^ `seeds` needs a number from 1 to 1000000
async fn too_many_seeds() {}

#[kittiwake::test(start_paused, seeds)]
//~                             ^ `seeds` needs a number from 1 to 1000000
async fn seeds_without_value() {}

#[kittiwake::test(seeds = 0..20)]
//~                       ^ `seeds` needs a number from 1 to 1000000
async fn range_of_seeds() {}

#[kittiwake::test(seeds = 2, start_paused, seeds = 3)]
//~                                        ^ `seeds` stands here twice
async fn seeds_twice() {}

#[kittiwake::test(seed = 7)]
//~               ^ there is no argument `seed`: `#[kittiwake::test]` takes `start_paused`, `worker_threads = 2`, `seeds = 20`
async fn one_seed() {}

#[kittiwake::test(worker_threads = 2, start_paused)]
//~                                   ^ a clock that starts paused needs a runtime without `worker_threads`
async fn paused_workers() {}

#[kittiwake::test(start_paused = 1)]
//~                              ^ write `start_paused`, `start_paused = true` or `start_paused = false`
async fn paused_number() {}

#[kittiwake::main(crate = kittiwake)]
//~                       ^ `crate` needs the path of kittiwake in quotes, for example `crate = "name"`
async fn no_quotes() {}

#[kittiwake::main(crate = "not a path")]
//~                       ^ `crate` needs the path of kittiwake in quotes
async fn no_path() {}

#[kittiwake::main(4)]
//~               ^ this is no argument: `#[kittiwake::main]` takes `worker_threads = 4`
async fn number() {}

#[kittiwake::main(current_thread,, more, worker_threads 4)]
//~                              ^ this is no argument
//~                                ^ there is no argument `more`
//~                                      ^ this is no argument
async fn three_mistakes() {}

fn main() {
    // Each function still exists, so these lines have no mistake.
    let _ = [unknown, zero, too_many, negative, text, no_value, twice, both, flavor, paused, no_quotes, no_path, seeds_of_main];
    let _ = [number, three_mistakes];
}
