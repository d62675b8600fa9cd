#!/bin/sh
# Writes deploy/alerts.yml as an object of the Prometheus operator.
set -eu
cd "$(dirname "$0")"
{
    echo "# deploy/prometheusrule.sh writes this file from deploy/alerts.yml."
    printf '%s\n' 'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' 'metadata:' '  name: viola' 'spec:'
    sed '1,/^groups:/ { /^groups:/!d }; s/^./  &/' alerts.yml
} > "${1:-kubernetes/components/prometheus-operator/prometheusrule.yaml}"
