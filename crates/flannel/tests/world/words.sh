# Words of the cases, as functions of the shell.

# What may not change when a command fails. A plugin may keep what host-local keeps beside its addresses, and what flannel's
# DEL, which a runtime then calls, needs; the daemon may make the folder of subnet.env.
look() { devices; nft list ruleset; files; }
devices() { ip -o link; ip -o addr; ip route; ip -6 route; }
files() {
    find . /run /var/lib ! '(' -path '/var/lib/cni*' -a '(' -type d -o -name lock -o -name 'last_reserved_ip.*' ')' ')' \
        ! -path '/var/lib/cni/flannel/c1' ! -path /run/flannel | sort
}
eth0() {
    ip link add eth0 type veth peer name eth1
    ip link set eth0 addrgenmode none
    ip link set eth1 up
    ip link set eth0 up
    until [ "$(ip -o link | grep -c 'state UP')" = 2 ]; do sleep 0.02; done
    ip addr add 192.0.2.1/24 dev eth0
    ip route add default via 192.0.2.254
}
config() { mkdir -p store; printf %s "$1" >store/config.json; }
# One subnet only, so that each run says the same: 10.244.1.0/24.
only() { printf '{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.1.0",%s}' "$1"; }
good() { config "$(only '"EnableNFTables":true,"Backend":{"Type":"vxlan"}')"; }
iptables_mode() { config "$(only '"Backend":{"Type":"vxlan"}')"; }
occupy() {
    perl -MIO::Socket -e '$s = IO::Socket::INET->new(@ARGV) or die; open $f, ">", "../occupied"; sleep 60' \
        Proto "$1" LocalAddr 0.0.0.0 LocalPort "$2" ${3:+Listen "$3"} &
    until [ -e ../occupied ]; do sleep 0.02; done
}
peer() {
    record "10.244.$1.0-24" '{"PublicIP":"192.0.2.'$1'","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:0'$1'"}}'
}
program() {
    rm -f "../bin/$1"
    printf '#!/bin/sh\n%s\n' "$2" >"../bin/$1"
    chmod +x "../bin/$1"
}
record() { mkdir -p store/subnets; printf %s "$2" >"store/subnets/$1.json"; }
pod() {
    ip netns add pod
    export CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/pod CNI_PATH="$PWD/../bin"
}
# What may be asked of a daemon that goes on.
warned() { grep -q ' WARN ' ../err; }
programmed() { [ -e /run/flannel/subnet.env ] && grep -q ready: ../err; }
routed() { ip route show "$1" | grep -q flannel.1; }
ask() {
    perl -MIO::Socket -e '$s = IO::Socket::INET->new("127.0.0.1:$ARGV[1]") or die;
        print $s "GET $ARGV[0] HTTP/1.0\r\n\r\n"; local $/; $_ = <$s>; s/.*?\r\n\r\n//s; print' "$1" "${2:-8081}"
}
ready() { [ "$(ask /readyz)" = 'flanneld is ready' ] && [ -e /run/flannel/subnet.env ]; }
not_ready() { ask /readyz | grep -F -- "$1" && [ ! -e /run/flannel/subnet.env ]; }
untouched() { look | cmp - ../before; }
until_true() {
    n=0
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "it never comes that: $*"; cat ../err; exit 1; }
        sleep 0.05
    done
}
is() { [ "$1" = "$2" ] || { printf 'expected:\n%s\nbut it is:\n%s\n' "$2" "$1"; exit 1; }; }
subnet_env() {
    mkdir -p /run/flannel
    printf '%s\n' FLANNEL_NETWORK=10.244.0.0/16 FLANNEL_SUBNET=10.244.1.1/24 FLANNEL_MTU=1450 FLANNEL_IPMASQ=true \
        >/run/flannel/subnet.env
}
