#!/usr/bin/env bash
# The README's commands, as a newcomer types them: real processes, real curl, real kill -9.
# Prints a line per check, `ok - …` or `not ok - …`, and exits with 1 if one failed.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
export ADDRSERVICE_ADMIN_PORT=0 ADDRSERVICE_LOG="$work/service.log" ADDRSERVICE_FOLDER="$work/book" ADDRSERVICE_SQLITE="$work/local/book.db"
server='' failed=0
trap 'stop_server KILL; rm -rf "$work"' EXIT

# check NAME COMMAND…: says whether the command succeeds; shows its output if not.
check() {
    local name=$1
    shift
    if "$@" >"$work/output" 2>&1; then
        echo "ok - $name"
    else
        echo "not ok - $name"
        sed 's/^/# /' "$work/output"
        failed=1
    fi
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_server COMMAND…: starts the service, and waits until it is ready.
start_server() {
    port=$(free_port)
    book="http://localhost:$port/addresses"
    "$@" --port "$port" >"$work/console" 2>&1 &
    server=$!
    for _ in $(seq 100); do
        curl -sf "http://localhost:$port/readiness" >/dev/null && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/console"
    return 1
}

# stop_server SIGNAL: ends the service; returns its exit status.
stop_server() {
    [[ -n $server ]] || return 0
    kill -s "$1" "$server" 2>/dev/null
    wait "$server" 2>/dev/null
    local status=$?
    server=''
    return "$status"
}

create() { curl -sf -i -X POST "$book" "$@" | tr -d '\r' | sed -n 's|^Location: .*/||p'; }
same_json() { python3 -c 'import json, sys; a, b = (json.load(open(f)) for f in sys.argv[1:]); sys.exit(a != b)' "$@"; }

walk() {
    set -e
    local id
    id=$(create -H 'Content-Type: application/json' -d @data/addresses/namo.json)
    [[ $id =~ ^[0-9a-f]{32}$ ]]
    curl -sf "$book/$id" >"$work/got"
    same_json "$work/got" data/addresses/namo.json
    curl -sf -X PUT -d @data/addresses/raga.json "$book/$id"
    curl -sf --compressed "$book/$id" >"$work/got"
    same_json "$work/got" data/addresses/raga.json
    curl -sf -X DELETE "$book/$id"
    [[ $(curl -s -o /dev/null -w '%{http_code}' "$book/$id") == 404 ]]
    [[ $(curl -sf "$book") == '{}' ]]
}

serves() {
    local name=$1
    shift
    check "$name: the service starts" start_server "$@"
    check "$name: the walk with curl" bash -c "$(declare -f create same_json walk); book=$book work=$work; walk"
    check "$name: SIGTERM ends it with 0" stop_server TERM
    check "$name: its last line says STOPPED" bash -c "tail -n 1 '$work/console' | grep -q STOPPED"
}

# survives_kill OPTION…: an entry is there after kill -9 and a new start.
survives_kill() {
    set -e
    start_server python3 run.py serve "$@"
    local id
    id=$(create -d @data/addresses/namo.json)
    stop_server KILL || true
    start_server python3 run.py serve "$@" --debug
    curl -sf "$book/$id" >"$work/got"
    same_json "$work/got" data/addresses/namo.json
    stop_server INT
}

# Entries that were made above move from files to SQLite and back, and stay what they are.
moves_house() {
    set -e
    local there=configs/addressbook-file.yaml here=configs/addressbook-sqlite.yaml
    python3 run.py copy --from $there --to $here --verify
    ADDRSERVICE_FOLDER="$work/again" python3 run.py copy --from $here --to $there --verify
    for file in "$work/book/"*.json; do cmp "$file" "$work/again/${file##*/}"; done
    head -n 1 "$file" | same_json /dev/stdin data/addresses/namo.json
}

refuses_bad_configuration() {
    printf 'server:\n  prot: 1\n' >"$work/bad.yaml"
    python3 run.py serve --config "$work/bad.yaml" 2>"$work/errors"
    [[ $? == 2 && $(wc -l <"$work/errors") == 1 ]] && grep -q "bad.yaml: server.prot: .*'port'" "$work/errors"
}

check 'run.py serve --check-config tells the settings' python3 run.py serve --check-config
serves 'run.py serve' python3 run.py serve --debug

# What follows is for those who use an environment of their own: here, the one of run.py.
source .venv/bin/activate
serves 'server.py as a script' python3 addrservice/tornado/server.py --config ./configs/addressbook-local.yaml --debug
serves 'python3 -m addrservice' python3 -m addrservice --debug
check 'an entry in a file survives kill -9' survives_kill --config configs/addressbook-file.yaml
check 'an entry in the default store survives kill -9' survives_kill
check 'run.py copy moves entries from files to SQLite and back' moves_house
check 'a bad configuration is one line and status 2' refuses_bad_configuration
check 'flake8 by hand' flake8 ./addrservice ./tests
check 'mypy by hand' mypy ./addrservice ./tests
check 'unittest by hand' python -m unittest discover tests -p '*handlers_test.py'
check 'a test file by itself' python3 tests/unit/address_data_test.py
check 'coverage by hand' coverage run --source=addrservice --branch ./run.py test -k unit.datamodel_test
check 'coverage report by hand' coverage report
exit "$failed"
