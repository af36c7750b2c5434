//! What `flanneld` makes of a Kubernetes API that is not there, not for it, or full of rubbish: one line with cause and remedy, no more.
//!
//! The rows share a server and run one after the other, each with Nodes of its own.

use super::{Case, goes_on, refused};

/// A server for all rows, which shows an expired certificate to those that ask for `expired.example`. `$KUBE_APISERVER` and `$ETCD`
/// name its programs.
pub(super) const STAGE: &str = r#"
export NODE_NAME=own FLANNELD_HEALTHZ_PORT=8081 FLANNELD_KUBE_SUBNET_MGR=true
export FLANNELD_KUBECONFIG_FILE=kubeconfig FLANNELD_NET_CONFIG_PATH=net-conf.json
mkdir ../k8s && cd ../k8s
export K8S=$PWD
eth0
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
authority() { key "$1" && openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 2 -out "$1.crt"; }
certificate() {
    key "$1"
    echo "subjectAltName = $4" >names
    openssl req -new -key "$1.key" -subj "${5:-}/CN=$1" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days "$3" -extfile names -out "$1.crt"
}
{
    authority ca && authority other && openssl genrsa -out accounts.key 2048
    certificate server ca 1 IP:127.0.0.1,IP:10.96.0.1 && certificate expired ca 0 DNS:expired.example
    certificate admin ca 1 DNS:admin /O=system:masters && certificate foreign other 1 DNS:foreign
} 2>openssl.log
{
    echo 'flannel-s3cret,system:serviceaccount:kube-flannel:flannel,1'
    echo 'reader-s3cret,system:serviceaccount:kube-flannel:reader,2'
    echo 'kubelet-s3cret,system:node:own,3,system:nodes'
    echo 'nobody-s3cret,nobody,4'
} >tokens
"$ETCD" --unsafe-no-fsync --data-dir etcd --log-level error --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 >etcd.log 2>&1 &
"$KUBE_APISERVER" --etcd-servers=http://127.0.0.1:2379 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://k --service-account-key-file=accounts.key --service-account-signing-key-file=accounts.key \
    --client-ca-file=ca.crt --tls-cert-file=server.crt --tls-private-key-file=server.key \
    --tls-sni-cert-key=expired.crt,expired.key:expired.example --token-auth-file=tokens --service-cluster-ip-range=10.96.0.0/16 \
    --advertise-address=192.0.2.1 --endpoint-reconciler-type=none >server.log 2>&1 &
program api 'exec curl -sS --fail-with-body -o /dev/null --cacert $K8S/ca.crt --cert $K8S/admin.crt --key $K8S/admin.key \
    -X "$1" -H "Content-Type: application/${4:-json}" "https://127.0.0.1:6443$2" ${3:+--data-binary "$3"}'
until api GET /readyz 2>/dev/null; do sleep 0.1; done
role() {
    api POST /apis/rbac.authorization.k8s.io/v1/clusterroles '{"metadata":{"name":"'$1'"},"rules":['"$2"']}'
    api POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings '{"metadata":{"name":"'$1'"},
        "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"'$1'"},
        "subjects":[{"kind":"ServiceAccount","namespace":"kube-flannel","name":"'$1'"}]}'
}
role flannel '{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},
    {"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}'
role reader '{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]}'
# node NAME CIDR [ANNOTATION VALUE]...
node() {
    name=$1 cidrs=$2 annotations=
    shift 2
    while [ $# -gt 0 ]; do
        annotations="$annotations${annotations:+,}\"flannel.alpha.coreos.com/$1\":\"$2\""
        shift 2
    done
    spec="${cidrs:+\"podCIDR\":\"$cidrs\",\"podCIDRs\":[\"$cidrs\"]}"
    api POST /api/v1/nodes '{"metadata":{"name":"'"$name"'","annotations":{'"$annotations"'}},"spec":{'"$spec"'}}'
}
annotate() {
    api PATCH "/api/v1/nodes/$1" '{"metadata":{"annotations":{"flannel.alpha.coreos.com/'"$2"'":"'"$3"'"}}}' merge-patch+json
}
vtep() { printf '{\\"VNI\\":1,\\"VtepMAC\\":\\"%s\\"}' "$1"; }
# peer NUMBER [DATA [PUBLIC-IP]]: node pN, of subnet 10.244.N.0/24.
peer() {
    node "p$1" "10.244.$1.0/24" kube-subnet-manager true backend-type vxlan \
        backend-data "${2:-$(vtep "02:00:00:00:00:0$1")}" public-ip "${3-192.0.2.$1}"
}
# credential USER [CLUSTER]: lines of YAML.
credential() {
    cat >kubeconfig <<EOF
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {${2:-server: https://127.0.0.1:6443, certificate-authority: ../../k8s/ca.crt}}}]
users: [{name: u, user: {$1}}]
EOF
}
config() { printf %s "$1" >net-conf.json; }
conf() { config "$(only "${1:-"\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\"}"}")"; }
# Everything as it should be, for a user.
good() { conf && credential "token: ${1:-flannel}-s3cret" && node own "${2-10.244.1.0/24}"; }
once() { [ -e ../once ] || { eval "$1" && touch ../once; }; }
program tidy 'ip link del flannel.1 2>/dev/null; nft flush ruleset; rm -rf /run/flannel; api DELETE /api/v1/nodes'
while ip -6 addr | grep -q tentative; do sleep 0.05; done
"#;

const PLAIN: &str = "flanneld";

/// A server, or a way to it, that cannot be used: it is tried again, and the host left alone.
const fn server(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "warned && untouched && not_ready 'Kubernetes API'")
}

/// Files of ours that cannot be used.
const fn file(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "warned && untouched && not_ready hint")
}

/// A config that is waited for to become right.
const fn config(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "once 'warned && untouched && not_ready net-conf.json && conf' && ready")
}

/// Rubbish beside a good peer, which is routed to.
const fn beside(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "ready && routed 10.244.7.0/24")
}

pub(super) const CASES: &[Case] = &[
    server(
        "nobody there",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:9'",
        "not ready: Kubernetes API at https://127.0.0.1:9 cannot be reached: Connection refused (os error 111) (hint: see that the API server runs there, or correct --kube-api-url or the kubeconfig's server)",
    ),
    server(
        "server of another kind",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:2379, certificate-authority: ../../k8s/ca.crt'",
        "not ready: Kubernetes API at https://127.0.0.1:2379 cannot be reached: the server hangs up (hint: see that an API server listens there, and that it speaks TLS)",
    ),
    server(
        "authority that did not sign",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:6443, certificate-authority: ../../k8s/other.crt'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot be reached: invalid peer certificate: UnknownIssuer (hint: give the CA that signed the API server's certificate: certificate-authority in the kubeconfig, ca.crt beside the token)",
    ),
    server(
        "expired certificate",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:6443, certificate-authority: ../../k8s/ca.crt, tls-server-name: expired.example'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot be reached: invalid peer certificate: certificate expired (hint: renew the API server's certificate (kubeadm certs renew), or correct the clock of this host)",
    ),
    server(
        "certificate of another name",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:6443, certificate-authority: ../../k8s/ca.crt, tls-server-name: other.example'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot be reached: invalid peer certificate: certificate not valid for name \"other.example\"; certificate is only valid for IpAddress(127.0.0.1) or IpAddress(10.96.0.1) (hint: reach the API server by a name or address that is in its certificate)",
    ),
    server(
        "name that is none",
        "good && credential 'token: flannel-s3cret' 'server: https://nowhere.invalid'",
        "not ready: Kubernetes API at https://nowhere.invalid:443 cannot be reached: no answer of the resolver in 2 s (hint: correct the name of the API server, or this host's resolver)",
    ),
    server(
        "certificate and key of two",
        "good && credential 'client-certificate: ../../k8s/admin.crt, client-key: ../../k8s/foreign.key'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot be reached: certificate ../../k8s/admin.crt and key ../../k8s/foreign.key: keys may not be consistent: KeyMismatch (hint: give a certificate and a key that belong together)",
    ),
    server(
        "token that nobody knows",
        "good && credential 'token: s3cret'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot read node own: 401 Unauthorized (hint: the API does not know this token or certificate: see that it has not expired and is of this cluster)",
    ),
    server(
        "certificate of another authority",
        "good && credential 'client-certificate: ../../k8s/foreign.crt, client-key: ../../k8s/foreign.key'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot read node own: 401 Unauthorized (hint: the API does not know this token or certificate: see that it has not expired and is of this cluster)",
    ),
    server(
        "user without rights",
        "good nobody",
        "not ready: Kubernetes API at https://127.0.0.1:6443 refuses to read node own: 403 nodes \"own\" is forbidden: User \"nobody\" cannot get resource \"nodes\" in API group \"\" at the cluster scope (hint: the ClusterRole of flanneld's account (flannel) lacks the rule: - {apiGroups: [\"\"], resources: [\"nodes\"], verbs: [\"get\"]})",
    ),
    server(
        "authority that cannot be read",
        "good && credential 'token: flannel-s3cret' 'server: https://127.0.0.1:6443, certificate-authority: nothing'",
        "not ready: Kubernetes API at https://127.0.0.1:6443 cannot be reached: cannot read CA certificate nothing: I/O error: No such file or directory (os error 2) (hint: give files that flanneld may read)",
    ),
    file(
        "no kubeconfig",
        "good && rm kubeconfig",
        "not ready: cannot read kubeconfig kubeconfig: No such file or directory (os error 2) (hint: correct the file that --kubeconfig-file names; `kubectl config view` shows how one looks)",
    ),
    file(
        "kubeconfig without a context",
        "good && echo 'a: b' >kubeconfig",
        "not ready: kubeconfig kubeconfig: it has no current-context (hint: correct the file that --kubeconfig-file names; `kubectl config view` shows how one looks)",
    ),
    file(
        "kubeconfig with a proxy",
        "good && credential 'token: flannel-s3cret' 'server: https://a, proxy-url: http://p'",
        "not ready: kubeconfig kubeconfig: cluster k proxy-url names a proxy, which flanneld cannot use (hint: correct the file that --kubeconfig-file names; `kubectl config view` shows how one looks)",
    ),
    file(
        "plugin that fails",
        "good && credential 'exec: {apiVersion: v1, command: /bin/false}'",
        "not ready: credential plugin /bin/false: it ended with exit status: 1 (hint: correct the command in the kubeconfig's users[].user.exec, which has to print an ExecCredential)",
    ),
    file(
        "token file that is empty",
        "good && touch token && credential 'tokenFile: token'",
        "not ready: token holds no token (hint: see that it holds one token, on one line)",
    ),
    goes_on(
        "right to patch that is missing",
        "good reader",
        PLAIN,
        "not ready: own lease: Kubernetes API at https://127.0.0.1:6443 refuses to patch the status of node own: 403 nodes \"own\" is forbidden: User \"system:serviceaccount:kube-flannel:reader\" cannot patch resource \"nodes/status\" in API group \"\" at the cluster scope (hint: the ClusterRole of flanneld's account (flannel) lacks the rule: - {apiGroups: [\"\"], resources: [\"nodes/status\"], verbs: [\"patch\"]})",
        "warned && untouched && not_ready nodes/status",
    ),
    goes_on(
        "credential of a kubelet",
        "good kubelet && peer 7",
        PLAIN,
        "not ready: Kubernetes API at https://127.0.0.1:6443 refuses to watch nodes: 403 nodes is forbidden: User \"system:node:own\" cannot watch resource \"nodes\" in API group \"\" at the cluster scope: node 'own' cannot read all nodes, only its own Node object; no other node is known, and only our own is kept (hint: this is a kubelet's credential, which from Kubernetes 1.32 on sees only its own node: give flanneld the service account flannel)",
        "warned && ask /readyz | grep -F 1.32",
    ),
    goes_on(
        "node that does not exist",
        "good",
        "env NODE_NAME=nobody flanneld",
        "not ready: waiting for node nobody: the Kubernetes API has none of that name (hint: see that NODE_NAME is the name that kubelet registers, as `kubectl get nodes` shows it)",
        "warned && untouched && not_ready nobody",
    ),
    goes_on(
        "node without a pod CIDR",
        "good flannel ''",
        PLAIN,
        "not ready: waiting for spec.podCIDRs of node own (hint: kube-controller-manager gives them with --allocate-node-cidrs and --cluster-cidr; kubeadm init with --pod-network-cidr)",
        "warned && untouched && not_ready podCIDRs",
    ),
    goes_on(
        "pod CIDR outside the network",
        "good flannel 10.9.1.0/24",
        PLAIN,
        "not ready: own lease: pod CIDR 10.9.1.0/24 of node own lies outside Network 10.244.0.0/16 of the network config (hint: make Network in net-conf.json what kube-controller-manager has as --cluster-cidr)",
        "warned && untouched && not_ready 10.9.1.0/24",
    ),
    config(
        "no config",
        "good && rm net-conf.json",
        "not ready: cannot read net-conf.json: No such file or directory (os error 2) (hint: mount the ConfigMap kube-flannel-cfg there, with a key net-conf.json, or correct --net-config-path)",
    ),
    config(
        "config that is not JSON",
        "good && config '{bad'",
        "not ready: net-conf.json: network config is not a JSON object: key must be a string at line 1 column 2 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config without a network",
        "good && config '{}'",
        "not ready: net-conf.json: network config has no Network: EnableIPv4 is true (the default) (hint: set \"Network\": \"10.244.0.0/16\", or \"EnableIPv4\": false)",
    ),
    goes_on(
        "config that becomes nonsense, and another",
        "good",
        PLAIN,
        "net-conf.json: network config is not a JSON object: key must be a string at line 1 column 2 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}); the network config read before stays in force",
        "ready && once 'config \"{bad\"' && grep -q 'stays in force' ../err && ready",
    ),
    beside(
        "data that is null",
        "good && peer 8 null && peer 7",
        "lease p8 is skipped: flannel.alpha.coreos.com/backend-data: null is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}",
    ),
    beside(
        "data that is not JSON",
        "good && peer 8 '{bad' && peer 7",
        "lease p8 is skipped: flannel.alpha.coreos.com/backend-data: {bad is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}",
    ),
    beside(
        "VTEP without a MAC",
        r#"good && peer 8 '{\"VNI\":1}' && peer 7"#,
        "lease p8 is skipped: flannel.alpha.coreos.com/backend-data.VtepMAC: is missing",
    ),
    beside(
        "MAC of a group",
        "good && peer 8 \"$(vtep 01:00:5e:00:00:01)\" && peer 7",
        "lease p8 is skipped: flannel.alpha.coreos.com/backend-data.VtepMAC: MAC is not the MAC address of a host",
    ),
    beside(
        "MAC of eight bytes",
        "good && peer 8 \"$(vtep 02:00:00:00:00:08:00:01)\" && peer 7",
        "lease p8 is skipped: flannel.alpha.coreos.com/backend-data.VtepMAC: `02:00:00:00:00:08:00:01` is not a 6-byte MAC address",
    ),
    beside(
        "no public IP",
        "good && peer 8 '' 0.0.0.0 && peer 7",
        "lease p8 is skipped: flannel.alpha.coreos.com/public-ip: `0.0.0.0` is not an IPv4 address of a host",
    ),
    beside(
        "managed node without a pod CIDR",
        "good && node p8 '' kube-subnet-manager true && peer 7",
        "lease p8 is skipped: spec.podCIDRs: is empty",
    ),
    beside(
        "pod CIDRs outside the network, over the node network and over ours",
        // The API tells a Node's age in seconds, and p9 has to be the younger one.
        "good && sleep 1.1 && node p6 192.0.2.0/24 kube-subnet-manager true backend-type vxlan backend-data \"$(vtep 02:00:00:00:00:06)\" public-ip 192.0.2.6 && \
         node p8 10.9.8.0/24 kube-subnet-manager true backend-type vxlan backend-data \"$(vtep 02:00:00:00:00:08)\" public-ip 192.0.2.8 && \
         node p9 10.244.1.128/25 kube-subnet-manager true backend-type vxlan backend-data \"$(vtep 02:00:00:00:00:09)\" public-ip 192.0.2.9 && \
         peer 7",
        "lease p6 is skipped: subnet: 192.0.2.0/24 is not inside the network 10.244.0.0/16\n\
         lease p8 is skipped: subnet: 10.9.8.0/24 is not inside the network 10.244.0.0/16\n\
         lease p9 is skipped: subnet: 10.244.1.128/25 overlaps this node's own subnet 10.244.1.0/24",
    ),
    beside(
        "overwrite that is no address",
        "good && annotate own public-ip-overwrite nonsense && peer 7",
        "node own: flannel.alpha.coreos.com/public-ip-overwrite: `nonsense` is not an IPv4 address of a host; it has no effect",
    ),
    refused(
        "nothing says which node",
        "unset NODE_NAME; conf",
        PLAIN,
        "error: which Node this is cannot be told: neither NODE_NAME is set, nor POD_NAME and POD_NAMESPACE\n\
         hint: in the DaemonSet's env: {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}; elsewhere the name that `kubectl get nodes` shows\n\
         ",
    ),
    refused(
        "nothing says where the API is",
        "unset FLANNELD_KUBECONFIG_FILE; conf",
        PLAIN,
        "error: where the Kubernetes API is cannot be told: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set\n\
         hint: run flanneld in a pod, or give --kubeconfig-file or --kube-api-url",
    ),
];
