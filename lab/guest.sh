#!/bin/sh
# The first program of a guest: counts seconds on its console. A word on the
# kernel's command line, which the kernel hands to us as a variable, adds work:
#   work=busy    a loop in user mode on every vCPU
#   work=kernel  one long system call after the other, on the last vCPU
#   work=sleep   short sleeps on every vCPU
#   work=load    short sleeps, processes that come and go, and much memory that
#                is written, on every vCPU
#   work=traps   short sleeps on every vCPU, probed in the kernel by ftrace at the
#                function's entry and by int3 inside it, and a program that traps
#                itself; what is counted is printed every second
#   work=toggle  the same, and the int3 comes and goes every four seconds
#   work=modules loads modules, calls a function of one every second, and tells
#                every four seconds what the kernel says of its modules, its tasks
#                and their stacks
spin() { while :; do :; done; }
churn() {
	while :; do
		head -c 300000 /dev/zero | tr '\0' x | wc -c >/dev/null
		usleep 1000
	done
}
each_cpu() {
	cpu=0
	while [ "$cpu" -lt "$(grep -c ^processor /proc/cpuinfo)" ]; do
		taskset $((1 << cpu)) "$@" &
		cpu=$((cpu + 1))
	done
}
probe() {
	mount -t tracefs tracefs /sys/kernel/tracing
	cd /sys/kernel/tracing
	echo 0 >/proc/sys/debug/kprobes-optimization # or the int3 becomes a jump
	echo p:entry hrtimer_nanosleep >kprobe_events
	echo p:inside hrtimer_nanosleep+5 >>kprobe_events
	echo 1 >events/kprobes/enable
}
# counts prints the hits of each probe, and how many were not counted. All are read at
# once: they go on.
counts() {
	echo probes $(cat kprobe_profile)
}
# onlines brings up a vCPU that the toolstack has given back, as udev does.
onlines() {
	for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do
		read -r is <"$cpu" && [ "$is" = 0 ] && echo 1 >"$cpu"
	done 2>/dev/null
}
load() {
	for module in slhc ppp_generic pktgen; do
		insmod /modules/$module.ko
	done
}
# tells prints files of the kernel's, each line with a word in front. It starts no
# program, so that the tasks it tells of stand still.
tells() {
	echo "told $1"
	while read -r line; do echo "module $line"; done </proc/modules
	for task in /proc/[0-9]*/task/[0-9]*; do
		read -r line <"$task/stat" || continue
		echo "stat $line"
		while read -r line; do echo "stack $line"; done <"$task/stack"
	done 2>/dev/null
	echo "told $1 all"
}
toggle() {
	echo "$1" >events/kprobes/inside/enable
	echo "inside $1"
}
case "$1" in
spin | churn) "$1" ;; # never ends
esac
mount -t proc proc /proc
mount -t sysfs sysfs /sys
case "$work" in
busy) each_cpu /init spin ;;
sleep) each_cpu /bin/nap ;;
load)
	each_cpu /bin/nap
	each_cpu /init churn
	;;
traps | toggle)
	probe
	each_cpu /bin/nap
	/bin/traps &
	;;
modules) load ;;
kernel) taskset $((1 << $(grep -c ^processor /proc/cpuinfo) - 1)) dd if=/dev/zero of=/dev/null bs=16M 2>/dev/null & ;;
esac
n=0
while :; do
	n=$((n + 1))
	onlines
	case "$work" in
	traps | toggle) counts ;;
	modules) read -r line </proc/net/pktgen/pgctrl ;;
	esac
	case "$work$((n % 8))" in
	modules0 | modules4) tells "$n" ;;
	toggle0) toggle 1 ;;
	toggle4) toggle 0 ;;
	esac
	echo "tick $n"
	sleep 1
done
