"""The compiled loops: plain functions of flat arrays, which ``toolchain`` compiles. One loop a file."""
