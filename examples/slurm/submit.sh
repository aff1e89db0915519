#!/bin/bash
# Submit both jobs and request their stream: submit.sh PROD_S2CS CONS_S2CS GATEWAY
# The jobs may start in any order, before or after the request. Run this on a login node, in this folder, with the
# environment in which SciStream is installed. The folder with the secrets must be one that the nodes share.
set -euo pipefail
prod=$1 cons=$2 gateway=$3
export EXAMPLE=${EXAMPLE:-$PWD/../http}
folder=$(mktemp -d "${STREAMS:-$HOME}/stream-XXXXXXXX")  # for its owner alone
uid=$(python3 -c 'import uuid; print(uuid.uuid4())')

producer=$(sbatch --parsable --output="$folder/producer.out" producer.sbatch "$folder/$uid.prod" "$gateway")
consumer=$(sbatch --parsable --output="$folder/consumer.out" consumer.sbatch "$folder/$uid.cons")
echo "jobs $producer and $consumer; their output is in $folder"

if ! s2uc request --prod "$prod" --cons "$cons" --uid "$uid" --join-dir "$folder"; then
    scancel "$producer" "$consumer"
    exit 1
fi
# When the consumer has ended, the producer is not needed any more, nor is the stream.
sbatch --parsable --output="$folder/release.out" --dependency="afterany:$consumer" \
    --wrap="s2uc release $uid; scancel $producer" >/dev/null
