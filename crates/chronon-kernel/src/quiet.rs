//! Catching a machine's panics without a word on standard error: a panic of the machine is a result in the log, not an
//! accident of the process.

use core::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

std::thread_local! {
    /// Whether the machine is running on this thread.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a machine's code. Its panic comes back as its message; every other panic in the process goes the way that it
/// went before.
pub(crate) fn catch<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    // The caller puts the state from before back, so nothing half-done is seen.
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(outer);
    result.map_err(|payload| {
        let message = match payload.downcast::<String>() {
            Ok(message) => *message,
            Err(payload) => match payload.downcast::<&'static str>() {
                Ok(message) => (*message).to_owned(),
                Err(payload) => {
                    // Dropping it may run the machine's code again.
                    core::mem::forget(payload);
                    String::from("a panic without a message")
                }
            },
        };
        crate::outbox::clip(&message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_comes_back_as_its_message() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| panic!("no {}", 1)), Err::<(), _>(String::from("no 1")));
        assert_eq!(catch(|| panic!("static")), Err::<(), _>(String::from("static")));
        let odd = catch(|| panic::panic_any(7_u8));
        assert_eq!(odd, Err::<(), _>(String::from("a panic without a message")));
        assert!(!QUIET.get());
        assert_eq!(
            catch(|| panic!("{}", "x".repeat(5_000))).map_err(|message| message.len()),
            Err::<(), _>(1_024)
        );
    }
}
