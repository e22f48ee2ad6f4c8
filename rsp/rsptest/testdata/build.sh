#!/bin/sh
# Builds program.elf. The addresses are those of the fake target's memory.
set -e
cd "$(dirname "$0")"
as -g --debug-prefix-map="$PWD"=. -o program.o program.s
ld -o program.elf -Ttext=0xffffffff81000000 -Tdata=0xffffffff81001000 --build-id=none program.o
chmod -x program.elf
rm program.o
