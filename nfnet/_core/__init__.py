"""The parts of queues and logs: messages, the ledger of verdicts, bindings and the loop. Private: use `nfnet`."""
