//! A task that works in pieces and yields after each: how late is a sleep beside it?

use std::time::Duration;

use super::{Cases, ONLY, Runtime};
use crate::program::spin;

const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) fn run<R: Runtime>(cases: &Cases) {
    for millis in [1, 5, 20] {
        let piece = Duration::from_millis(millis);
        run_pieces::<R>(cases, &format!("{millis} ms"), move |_| piece);
    }
    run_pieces::<R>(cases, "growth", growing);
}

/// Runs a case with one such task and, if there are several workers, a case with one for each. `piece` is the length of
/// each piece by its number.
fn run_pieces<R: Runtime>(cases: &Cases, name: &str, piece: impl Fn(u32) -> Duration + Copy + Send + 'static) {
    let mut counts = vec![1, cases.workers];
    counts.dedup();
    for tasks in counts {
        cases.run::<R, _>(&format!("{name}, {tasks} task{}", if tasks == 1 { "" } else { "s" }), |case| async move {
            for _ in 0..tasks {
                let case = case.clone();
                R::spawn(async move {
                    let mut number = 0;
                    while case.goes_on() {
                        spin(piece(number));
                        R::yield_now().await;
                        number += 1;
                    }
                });
            }
            case.sleep_often::<R>(ONLY, MILLISECOND).await;
        });
    }
}

/// Many short pieces and a few long ones, again and again. The executor meets the long ones with the habits of the short.
fn growing(number: u32) -> Duration {
    const SHORT: u32 = 5_000;
    const LONG: u32 = 8;
    if number % (SHORT + LONG) < SHORT { Duration::from_micros(1) } else { Duration::from_millis(20) }
}
