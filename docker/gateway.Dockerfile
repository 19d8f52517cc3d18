# nginx with docker/gateway.conf on port 8080, in front of the service
FROM python:3.11-slim-bookworm
# Debian's stable release keeps one version of nginx, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends nginx \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY docker/gateway.conf /etc/nginx/nginx.conf
RUN nginx -t && rm -rf /tmp/*

LABEL org.opencontainers.image.title="unet-service gateway" \
      org.opencontainers.image.description="nginx in front of unet-service: buffers uploads and limits requests" \
      org.opencontainers.image.licenses="MIT"
USER 10001:10001
EXPOSE 8080
# graceful: requests in flight are finished
STOPSIGNAL SIGQUIT
# Healthy: nginx and the service behind it answer. http.client ignores proxy variables, unlike urllib.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=60s CMD ["python", "-c", "\
from http.client import HTTPConnection; \
connection = HTTPConnection('127.0.0.1', 8080, timeout=4); \
connection.request('GET', '/health/live'); \
exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["nginx"]
