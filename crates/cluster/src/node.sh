# Furnishes the mount namespace of a node: its own folders in the places where a node's programs look, all below $1.
for place in run var-lib/kubelet var-log opt/cni/bin etc/upper etc/work net.d sysctl "run/$2"; do mkdir -p "$1/$place"; done
mount -t overlay none -o "lowerdir=/etc,upperdir=$1/etc/upper,workdir=$1/etc/work" /etc
mkdir -p /etc/cni/net.d
mount --bind "$1/net.d" /etc/cni/net.d
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/var-log" /var/log
mount --bind "$1/opt" /opt
# A kubelet sets these of the whole machine, unless they are as it wants them.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file="$1/sysctl/$(echo "${setting%=*}" | tr / -)"
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
mount --bind "/run/$2" "$1/run/$2"
mount --rbind "$1/run" /run
# What a container mounts may be seen by others: as on a machine with systemd.
mount --make-rshared /
