{{- /* The network configuration; what is as flannel takes it by itself is left out. */ -}}
{{- define "flannel.net-conf" -}}
{{- $network := list -}}
{{- with .Values.podCidr -}}
{{- $network = append $network (printf "\"Network\": %s" (toJson .)) -}}
{{- else -}}
{{- $network = append $network "\"EnableIPv4\": false" -}}
{{- end -}}
{{- with .Values.podCidrv6 -}}
{{- $network = append $network "\"EnableIPv6\": true" -}}
{{- $network = append $network (printf "\"IPv6Network\": %s" (toJson .)) -}}
{{- end -}}
{{- if .Values.flannel.enableNFTables -}}
{{- $network = append $network "\"EnableNFTables\": true" -}}
{{- end -}}
{{- $backend := list (printf "\"Type\": %s" (toJson .Values.flannel.backend)) -}}
{{- if eq .Values.flannel.backend "vxlan" -}}
{{- range $key, $value := dict "VNI" "vni" "Port" "backendPort" "MTU" "mtu" -}}
{{- with index $.Values.flannel $value -}}
{{- $backend = append $backend (printf "\"%s\": %d" $key (int .)) -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := dict "GBP" "GBP" "DirectRouting" "directRouting" -}}
{{- if index $.Values.flannel $value -}}
{{- $backend = append $backend (printf "\"%s\": true" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{
  {{ join ",\n  " $network }},
  "Backend": {
    {{ join ",\n    " $backend }}
  }
}
{{ end -}}
