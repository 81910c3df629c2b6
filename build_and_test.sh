#!/usr/bin/env bash
# Builds everything, checks it, tests it, and ends with a real answer from a real model.
# Needs a Rust toolchain and a C compiler. What it skips, and why, is listed at the end.
#
#   NEXAQUANT_DEMAND="python-gguf rustfmt clippy"   what must not be skipped (CI sets it); names separated by spaces
#   NEXAQUANT_SUB_GROUPS=folder                     with the .icd file of an OpenCL driver that has sub-groups, for their tests
set -euo pipefail
cd "$(dirname "$0")"

skipped=()
step() { printf '\n== %s\n' "$*"; }
skip() { # name, reason
  case " ${NEXAQUANT_DEMAND:-} " in *" $1 "*) echo "error: $1 is demanded but $2" >&2; exit 1 ;; esac
  skipped+=("$1: $2")
}

with_server() { # options of serve, --, a command that is given the server's address
  local options=() said server failed=0
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  said=$(mktemp)
  "$bin" serve alpha beta gamma --port 0 "${options[@]}" 2>"$said" &
  server=$!
  for _ in $(seq 100); do grep -q ' at http://' "$said" && break; sleep 0.1; done
  "$@" "$(sed -n 's/.* at \(http.*\)/\1/p' "$said" | head -1)" || failed=1
  kill "$server" && wait "$server"
  [ "$failed" = 0 ] || { echo "error: a client of the server failed" >&2; tail -n 200 "$said" >&2; exit 1; }
  rm -f "$said"
}

step "release build"
cargo build --release --locked --workspace
bin=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release/nexaquant

# An intrinsic with a symbol of its own was called from code that is compiled without the instruction set (a closure that was
# not inlined): right, and up to forty times slower.
outside=$(grep -aoE 'core_arch3x86.{0,16}_mm(256|512)?_[a-z0-9_]+|simd6avx5126opaque' "$bin" | sort -u || true)
[ -z "$outside" ] || { printf 'error: vector code outside its instruction set in %s:\n%s\n' "$bin" "$outside" >&2; exit 1; }

step "format and lints"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; else skip rustfmt "not installed"; fi
if cargo clippy --version >/dev/null 2>&1; then
  cargo clippy --locked --workspace --all-targets -- -D warnings
else
  skip clippy "not installed"
fi

step "documentation"
# Links to private items are for readers of the source.
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --quiet

step "tests"
python3 -c 'import gguf' >/dev/null 2>&1 || skip python-gguf "Python's gguf package is not importable (pip install gguf)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
cargo test --locked --workspace -- --nocapture --skip sub_groups >"$log" 2>&1 || failed=1
env ${NEXAQUANT_SUB_GROUPS:+"OCL_ICD_VENDORS=$NEXAQUANT_SUB_GROUPS"} \
  cargo test --locked --workspace sub_groups -- --nocapture >>"$log" 2>&1 || failed=1
grep -E '^(test result|error|warning)|FAILED|SKIPPED' "$log" || true
if [ "$failed" = 1 ]; then
  echo "error: tests failed; the whole output:" >&2
  cat "$log" >&2
  exit 1
fi
while read -r line; do skip "${line%%:*}" "${line#*: }"; done < <(grep -ohE 'SKIPPED .*' "$log" | sed 's/^SKIPPED //' | sort -u)

step "a real run"
"$bin" run alpha -p "Tell me a story about a little fox." --seed 7 -n 60
"$bin" m3 --events none
if ldd "$bin" 2>/dev/null | grep -qi opencl; then echo "error: the program is linked against OpenCL" >&2; exit 1; fi
if python3 -c 'import openai, anthropic, ollama, schemathesis, yaml' >/dev/null 2>&1; then
  with_server --budget 10MB -- python3 crates/server/tests/clients/check.py
  with_server --budget 10MB --max-tokens 8 -- python3 crates/server/tests/clients/schema.py
  python3 crates/server/tests/deploy/check.py "$bin"
else
  skip python-clients "the Python packages openai, anthropic, ollama, schemathesis and pyyaml are not importable"
fi
# Its packages do not go together with those of the others, so it may have a Python of its own.
litellm=${NEXAQUANT_LITELLM_PYTHON:-python3}
if "$litellm" -c 'import litellm, fastapi, openai' >/dev/null 2>&1; then
  "$litellm" crates/server/tests/clients/proxy.py "$bin"
else
  skip litellm "the Python package litellm[proxy] is not importable"
fi
if python3 -c 'import playwright, axe_playwright_python' >/dev/null 2>&1 && [ -x "${NEXAQUANT_CHROMIUM:=/usr/bin/chromium}" ]; then
  # Its pictures stay in target/browser.
  NEXAQUANT_CHROMIUM=$NEXAQUANT_CHROMIUM python3 crates/server/tests/browser/check.py "$bin" "${bin%/release/*}/browser"
else
  skip browser "the Python packages playwright and axe-playwright-python are not importable, or there is no ${NEXAQUANT_CHROMIUM:-/usr/bin/chromium}"
fi
for isa in scalar avx2 avx512 amx; do
  if NEXAQUANT_ISA=$isa "$bin" info 2>&1 | grep -q "does not have it"; then
    skip "$isa" "this processor does not have it"
    continue
  fi
  ids=$(NEXAQUANT_ISA=$isa "$bin" run alpha -p "Hello." --temp 0 -n 20 --json | sed -n 's/.*"tokens":\(\[[0-9, ]*\]\).*/\1/p')
  [ -n "$ids" ] && [ "${first:=$ids}" = "$ids" ] || { echo "error: $isa answers '$ids', not '${first:-}'" >&2; exit 1; }
done

step "done"
if [ ${#skipped[@]} -gt 0 ]; then printf 'skipped %s\n' "${skipped[@]}"; else echo "nothing was skipped"; fi
