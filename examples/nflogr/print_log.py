"""Print what firewall rules log.

iptables -I INPUT -p tcp --syn -j NFLOG --nflog-group 5 --nflog-prefix "new:"
python print_log.py 5
"""

import sys

import nflogr

with nflogr.open(int(sys.argv[1])) as log:
    try:
        for data in log:
            print(data.prefix, data.indev or "-", data.outdev or "-", len(data.payload), "bytes", flush=True)
    except KeyboardInterrupt:
        pass
