//~ says: cannot be sent between threads safely
use kittiwake::runtime::Handle;

fn needs_send<T: Send>(_: T) {}

fn main() {
    let handle = Handle::current();
    needs_send(handle.enter());
}
