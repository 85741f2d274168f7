"""The way to the kernel and to the machine: sockets, waiting, locks, forks, files. Private: import from `nfnet`."""
