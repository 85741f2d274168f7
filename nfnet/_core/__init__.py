"""What queues and logs are made of: messages, the ledger of verdicts, bindings and the loop. Private: see `nfnet`."""
