# Commands for people; `just` lists them.

# What CI runs.
ci:
    .ci/run

# The whole story on this machine.
demo:
    cargo run --release -p twinkey -- demo

# For the boards: `just cross aarch64`, or `just cross armv7 test -p twinkey-sas`.
cross *arguments:
    packaging/cross {{arguments}}

# What the agent takes of a board, beside Microsoft's SDKs: `just footprint --check`.
footprint *options:
    tests/footprint/run {{options}}

# Whether two builds of this tree are the same bytes: `just reproducible aarch64`.
reproducible *arguments:
    packaging/reproducible {{arguments}}

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

# The agent in worlds that a seed determines: `just sim SEED=1 N=1000000`.
sim *settings:
    for setting in {{settings}}; do export "TWINKEY_SIM_$setting"; done; cargo test --release -p twinkey-agent --test simulation -- --nocapture

# An hour of renewals and faults; draws memory and descriptors over time.
soak secs="3600" svg="/tmp/soak.svg":
    TWINKEY_SOAK_SECS={{secs}} TWINKEY_SOAK_SVG={{svg}} cargo test --release -p twinkey-tests --test soak -- --nocapture

# Every fuzz target for so many seconds.
fuzz secs="600":
    fuzz/run {{secs}}
