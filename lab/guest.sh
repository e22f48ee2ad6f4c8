#!/bin/sh
# The first program of a guest: counts seconds on its console. The word
# work=busy on the kernel's command line, which the kernel hands to us as a
# variable, adds one busy loop in user mode per vCPU.
mount -t proc proc /proc
if [ "$work" = busy ]; then
	cpus=$(grep -c ^processor /proc/cpuinfo)
	while [ "$cpus" -gt 0 ]; do
		(while :; do :; done) &
		cpus=$((cpus - 1))
	done
fi
n=0
while :; do
	n=$((n + 1))
	echo "tick $n"
	sleep 1
done
