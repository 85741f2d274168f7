# Collects what firewall rules log, in a container.
#
#   docker build -t nfnet-collect -f examples/docker/collect.Dockerfile .                # in a checkout
#   docker run -d --cap-drop ALL --cap-add NET_ADMIN --network host -v nfnet:/var/lib/nfnet nfnet-collect
#
# The volume has the database: docker exec CONTAINER nfnet query /var/lib/nfnet/firewall.db "top sources"
# Other groups and outputs: behind the name of the image, as for nfnet collect.

FROM python:3.12-slim
COPY pyproject.toml README.md LICENSE pytest_nfnet.py /src/
COPY nfnet /src/nfnet
RUN pip install --no-cache-dir /src
VOLUME /var/lib/nfnet
# As root of the container, with that one capability: docker gives none to other users.
ENTRYPOINT ["nfnet", "collect", "--spool", "/var/lib/nfnet/spool"]
CMD ["--group", "5", "--to", "sqlite:/var/lib/nfnet/firewall.db", "keep=90d"]
