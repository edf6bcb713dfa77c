# Commands for people; `just` lists them.

# What CI runs.
ci:
    .ci/run

# The whole story on this machine.
demo:
    cargo run --release -p twinkey -- demo

test:
    cargo test --workspace

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Hand-made mistakes in the state machine, and the test that notices each.
mutants:
    rotation/mutants/run

# Licences, sources and bans of every dependency (needs cargo-deny).
deny:
    cargo deny check

# Kill the agent at random points of many rotations; the seed is printed.
kill-sweep rotations="200":
    TWINKEY_KILL_ROTATIONS={{rotations}} cargo test --release -p twinkey-tests --test kill -- --nocapture
