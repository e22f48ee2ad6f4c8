#!/bin/sh
# The first program of a guest: counts seconds on its console. A word on the
# kernel's command line, which the kernel hands to us as a variable, adds work:
#   work=busy    a loop in user mode on every vCPU
#   work=kernel  one long system call after the other, on one vCPU
mount -t proc proc /proc
case "$work" in
busy)
	cpus=$(grep -c ^processor /proc/cpuinfo)
	while [ "$cpus" -gt 0 ]; do
		(while :; do :; done) &
		cpus=$((cpus - 1))
	done
	;;
kernel)
	dd if=/dev/zero of=/dev/null bs=16M 2>/dev/null &
	;;
esac
n=0
while :; do
	n=$((n + 1))
	echo "tick $n"
	sleep 1
done
