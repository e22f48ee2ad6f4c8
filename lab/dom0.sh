#!/bin/sh
# The first program of dom0: brings up what xl and the agent need, says so on
# the console, and then is the agent's parent.
export PATH=/usr/lib/xen/bin:/usr/sbin:/usr/bin HOME=/root TERM=linux
fail() {
	echo "lab: dom0 failed: $*"
	exec sh
}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/xen /run/xenstored
modprobe -a xen-privcmd xen-evtchn xenfs xen-gntdev xen-gntalloc virtio_pci virtio_net 9pnet_virtio 9p || fail "load modules"
mount -t xenfs xenfs /proc/xen || fail "mount xenfs"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none share /share || fail "mount share"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose image /image || fail "mount image"
mkdir -p /share/console
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up || fail "set up network"
xenstored --pid-file=/run/xen/xenstored.pid || fail "start xenstored"
n=0
until xenstore-exists / 2>/dev/null || [ "$n" -ge 50 ]; do
	n=$((n + 1))
	sleep 0.1
done
xen-init-dom0 >/run/xen-init-dom0.log 2>&1 || fail "xen-init-dom0: $(cat /run/xen-init-dom0.log)"
xenconsoled --log=guest --log-dir=/share/console --pid-file=/run/xen/xenconsoled.pid || fail "start xenconsoled"
echo "lab: dom0 is ready"
/agent -listen :7070 -token-file /share/token
fail "the agent ended"
