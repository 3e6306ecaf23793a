#!/usr/bin/env bash
# Start a private Slurm on this machine: munged, slurmctld and some slurmd, without systemd, as root.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: [VARIABLE=value ...] bash start.sh FOLDER      (stop.sh FOLDER ends it)

  NODES=3 CPUS=2 MEMORY=4000 GPUS=2   the number of nodes, and the resources that each declares; GPUs are fake
  NAMED=1                             each node has its own network, address and host name
  PORT=16817 FIRST_JOB=1              the controller's port, which the nodes' ports follow; the number of the first job.
                                      Two clusters on a machine need different ones.

All files are written to FOLDER. To use this Slurm: export SLURM_CONF=FOLDER/etc/slurm.conf
EOF
}

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    (($# == 1)) || { usage >&2; exit 2; }
    export PATH=$PATH:/usr/sbin:/sbin
    folder=$(realpath -m -- "$1")
    nodes=${NODES:-3} cpus=${CPUS:-2} memory=${MEMORY:-4000} gpus=${GPUS:-2} named=${NAMED:-0}
    port=${PORT:-16817} first_job=${FIRST_JOB:-1}
    for number in "$nodes" "$cpus" "$memory" "$gpus" "$named" "$port" "$first_job"; do
        [[ $number =~ ^(0|[1-9][0-9]{0,8})$ ]] || { echo "start.sh: error: $number: a number was expected" >&2; exit 2; }
    done
    # two clusters with networks never meet: the address and the names of the interfaces contain the port
    network=10.$((port / 256)).$((port % 256)) prefix=sl$port controller=127.0.0.1
    ((named == 0)) || controller=$network.1
    mkdir -p "$folder"/{etc,log,run,state,spool,munge,dev}
    export SLURM_CONF=$folder/etc/slurm.conf
    start_munge
    ((named == 0)) || make_networks
    write_configuration
    slurmctld -f "$SLURM_CONF" -c
    for ((node = 1; node <= nodes; node++)); do start_node "$node"; done
    await_nodes
}

start_munge() {
    local munge=$folder/munge
    [[ -s $munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$munge/key")
    munged --key-file="$munge/key" --socket="$munge/socket" --pid-file="$folder/run/munged.pid" \
        --log-file="$munge/log" --seed-file="$munge/seed" --num-threads=2
}

# Make a network namespace for each node, and connect them by a bridge. Exit with 77 if this machine does not allow it.
make_networks() {
    if ! ip netns add "${prefix}n0" || ! ip netns delete "${prefix}n0"; then
        echo "start.sh: error: this machine allows no network namespaces" >&2
        exit 77
    fi
    for ((node = 1; node <= nodes; node++)); do
        [[ ! -e /run/netns/${prefix}n$node || -z $(ip netns pids "${prefix}n$node") ]] && continue
        echo "start.sh: error: a cluster with the port $port runs here: end it with stop.sh, or set another PORT" >&2
        exit 1
    done
    echo "$prefix" >"$folder/networks" # stop.sh removes those with this prefix
    bash "$(dirname -- "${BASH_SOURCE[0]}")/remove-networks.sh" "$prefix" # of a cluster that was killed
    ip link add "$prefix" type bridge
    ip address add "$network.1/24" dev "$prefix"
    ip link set "$prefix" up
    cp /etc/hosts "$folder/etc/hosts"
    for ((node = 1; node <= nodes; node++)); do
        echo "$network.$((10 + node)) node$node" >>"$folder/etc/hosts"
        ip netns add "${prefix}n$node"
        ip link add "${prefix}v$node" type veth peer name eth0 netns "${prefix}n$node"
        ip link set "${prefix}v$node" master "$prefix" up
        ip -n "${prefix}n$node" address add "$network.$((10 + node))/24" dev eth0
        ip -n "${prefix}n$node" link set eth0 up
        ip -n "${prefix}n$node" link set lo up
    done
}

# GPUs are devices that do nothing, because slurmd drops GPUs without devices. Credentials are short-lived, because a
# requeued job waits until its old credential has expired.
write_configuration() {
    cat >"$SLURM_CONF" <<EOF
ClusterName=test
SlurmctldHost=$(hostname -s)($controller)
SlurmctldPort=$port
FirstJobId=$first_job
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=100
MinJobAge=3600
KillWait=3
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
MaxArraySize=1001
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/completed.txt
EOF
    local names=() name address device
    for ((device = 0; device < gpus; device++)); do
        [[ -e $folder/dev/gpu$device ]] || mknod "$folder/dev/gpu$device" c 1 3
    done
    for ((node = 1; node <= nodes; node++)); do
        name=node$node
        names+=("$name")
        mkdir -p "$folder/spool/$name"
        address=127.0.0.1
        ((named == 0)) || address=$network.$((10 + node))
        echo "NodeName=$name NodeHostname=$name NodeAddr=$address Port=$((port + node)) CPUs=$cpus RealMemory=$memory" \
            "Gres=gpu:$gpus State=UNKNOWN" >>"$SLURM_CONF"
        echo "NodeName=$name Name=gpu File=$folder/dev/gpu[0-$((gpus - 1))]" >>"$folder/etc/gres.conf"
    done
    echo "PartitionName=main Nodes=$(IFS=, && echo "${names[*]}") Default=YES MaxTime=1:00:00 State=UP" >>"$SLURM_CONF"
    echo "CgroupPlugin=cgroup/v1" >"$folder/etc/cgroup.conf"
}

start_node() { # NUMBER
    if ((named == 0)); then
        slurmd -f "$SLURM_CONF" -N "node$1"
        return
    fi
    # shellcheck disable=SC2016  # the inner shell expands them
    nsenter --net="/run/netns/${prefix}n$1" unshare --uts --mount --propagation private bash -c '
        hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -f "$3" -N "$1"' \
        _ "node$1" "$folder/etc/hosts" "$SLURM_CONF"
}

await_nodes() {
    for ((tries = 0; tries < 150; tries++)); do
        if (($(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l) == nodes)); then
            sinfo --Node --format='%N %T %c %m %G'
            return
        fi
        sleep 0.2
    done
    tail -n 20 "$folder"/log/*.log >&2
    echo "start.sh: error: Slurm did not start; its logs are in $folder/log" >&2
    exit 1
}

main "$@"
