# A small S3 server to try staging with: moto, on top of the image that is there anyway. It checks no signature: for trying,
# on a machine of your own, never as a store.
ARG IMAGE
FROM ${IMAGE}
USER 0:0
RUN python3 -m venv /opt/s3 && /opt/s3/bin/pip install --no-cache-dir --disable-pip-version-check "moto[server]==5.*"
USER 10001:10001
EXPOSE 9000
ENTRYPOINT ["/opt/s3/bin/moto_server", "--host", "0.0.0.0", "--port", "9000"]
CMD []
