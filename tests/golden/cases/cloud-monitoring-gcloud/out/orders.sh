#!/bin/sh
# shellcheck disable=SC2016 # the texts of alert policies hold variables of Cloud Monitoring
# Makes the fleet's resources in Google Cloud match shards.yaml. Rendered by shardctl: edit shards.yaml instead.
#
# Run it as often as you like: it looks first, makes what is missing, and changes only what differs and may be changed.
# It deletes nothing. It stops at a subscription with another topic, filter or ordering: Pub/Sub can't change those.
set -eu
CLOUDSDK_CORE_DISABLE_PROMPTS=1
export CLOUDSDK_CORE_DISABLE_PROMPTS

newline='
'
pauses='' # after a service account is made, grants to it may fail for some seconds

refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# done_with ACTION KIND NAME
done_with() {
  printf '%s %s %s\n' "$1" "$2" "$3"
}

# patiently COMMAND...
patiently() {
  for pause in $pauses; do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep "$pause"
  done
  "$@" >/dev/null
}

# topic ID LABELS KMS_KEY REGIONS IN_TRANSIT
# What is empty is left as it is: an organisation's policy sets the regions of a topic that names none.
topic() {
  topic=$1 labels=$2 key=$3 regions=$4 in_transit=$5 verb=create
  set --
  if live=$(gcloud pubsub topics describe "$topic" --project="$project" --format="$topic_fields" 2>/dev/null); then
    verb=update
    live_key=${live%%"|"*}
    live=${live#*"|"}
    live_regions=$(printf '%s' "${live%%"|"*}" | tr ';' '\n' | LC_ALL=C sort | tr '\n' ',')
    if [ "$live_key" = "$key" ]; then key=; fi
    if [ "${live_regions%,}|${live#*"|"}" = "$regions|$in_transit" ]; then regions=; fi
    if [ -z "$key$regions" ]; then
      done_with identical topic "$topic"
      return
    fi
  else
    set -- --labels="$labels"
  fi
  [ -z "$key" ] || set -- "$@" --topic-encryption-key="$key"
  [ -z "$regions" ] || set -- "$@" --message-storage-policy-allowed-regions="$regions"
  [ -z "$regions" ] || [ -z "$in_transit" ] || set -- "$@" --message-storage-policy-enforce-in-transit
  patiently gcloud pubsub topics "$verb" "$topic" --project="$project" "$@"
  done_with "$verb" topic "$topic"
}
topic_fields='value[separator="|"](kmsKeyName,messageStoragePolicy.allowedPersistenceRegions,'
topic_fields=$topic_fields'messageStoragePolicy.enforceInTransit)'

# subscription ID TOPIC FILTER LABELS STATE FLAG...
# STATE is what `describe` prints of the fields that can be changed, when they are right; FLAGs set them.
subscription() {
  name=$1 topic=$2 filter=$3 labels=$4 state=$5
  shift 5
  if ! live=$(gcloud pubsub subscriptions describe "$name" --project="$project" --format="$subscription_fields" 2>/dev/null); then
    [ -z "$filter" ] || set -- "$@" --message-filter="$filter"
    gcloud pubsub subscriptions create "$name" --project="$project" --topic="$topic" --enable-message-ordering \
      --labels="$labels" "$@" >/dev/null
    done_with create subscription "$name"
    return
  fi
  live_topic=${live%%"|"*}
  live=${live#*"|"}
  live_ordering=${live%%"|"*}
  live=${live#*"|"}
  rest=$live
  for _ in 1 2 3 4 5 6 7 8; do rest=${rest#*"|"}; done
  live_endpoint=${rest%%"|"*}
  for _ in 1 2 3; do rest=${rest#*"|"}; done
  live_unwrapped=${rest%%"|"*}
  rest=${rest#*"|"} # the filter comes last: it may hold a '|' itself
  [ "$live_topic" != _deleted-topic_ ] || refuse "subscription $name: its topic was deleted, the file wants '$topic', and" \
    "Pub/Sub can't attach it to another. Let the consumers read what it still holds, then delete the subscription and run this again."
  [ "$live_topic" = "$topic" ] || unchangeable topic "$live_topic" "$topic" "A topic's name is fixed for a fleet's life, and no" \
    'rebalance changes it: undo the edit of `topic`, or begin a new fleet, under another `fleet`, on the new topic.'
  [ "$rest" = "$filter" ] || unchangeable filter "$rest" "$filter" "$new_generation"
  case $live_ordering in [Tt]rue) ;; *) unchangeable 'message ordering' off on "$new_generation" ;; esac
  if [ "$live" = "$state|$filter" ]; then
    done_with identical subscription "$name"
    return
  fi
  case $state in *'|||||||||') set -- "$@" --clear-retry-policy --clear-dead-letter-policy ;; esac
  case $state in *'||||') [ -z "$live_endpoint" ] || set -- "$@" --push-endpoint= ;; esac
  case $state in *'|') [ -z "$live_unwrapped" ] || set -- "$@" --clear-push-no-wrapper-config ;; esac
  gcloud pubsub subscriptions update "$name" --project="$project" "$@" >/dev/null
  done_with update subscription "$name"
}
subscription_fields='value[separator="|"](topic,enableMessageOrdering,ackDeadlineSeconds,messageRetentionDuration,'
subscription_fields=$subscription_fields'retainAckedMessages,expirationPolicy.ttl,retryPolicy.minimumBackoff,retryPolicy.maximumBackoff,'
subscription_fields=$subscription_fields'deadLetterPolicy.deadLetterTopic,deadLetterPolicy.maxDeliveryAttempts,'
subscription_fields=$subscription_fields'pushConfig.pushEndpoint,pushConfig.oidcToken.serviceAccountEmail,'
subscription_fields=$subscription_fields'pushConfig.oidcToken.audience,pushConfig.noWrapper.writeMetadata,filter)'

# unchangeable WHAT LIVE WANTED FIX...
unchangeable() {
  what=$1 was=$2 wanted=$3
  shift 3
  refuse "subscription $name: its $what is '$was', the file wants '$wanted', and Pub/Sub can't change it." "$@"
}
new_generation='Deleting it would lose its backlog: give the shard a new generation with `shardctl rebalance`, or undo the edit.'

# account EMAIL ID DISPLAY_NAME
account() {
  if live=$(gcloud iam service-accounts describe "$1" --project="$project" --format='value(displayName)' 2>/dev/null); then
    if [ "$live" = "$3" ]; then
      done_with identical account "$1"
      return
    fi
    gcloud iam service-accounts update "$1" --project="$project" --display-name="$3" >/dev/null
    done_with update account "$1"
    return
  fi
  gcloud iam service-accounts create "$2" --project="$project" --display-name="$3" >/dev/null
  pauses='2 4 8 16'
  done_with create account "$1"
}

# redis_instance NAME REGION LABELS STATE FLAG...
# As sql_instance: one that differs is reported and left as it is.
redis_instance() {
  instance=$1 region=$2 labels=$3 state=$4
  shift 4
  if live=$(gcloud redis instances describe "$instance" --region="$region" --project="$project" --format="$redis_fields" 2>/dev/null); then
    if [ "$live" = "$state" ]; then
      done_with identical instance "$instance"
      return
    fi
    done_with different instance "$instance"
    printf 'warning: instance %s is %s, the file wants %s; this script changes no instance: gcloud redis instances update %s\n' \
      "$instance" "$live" "$state" "$instance" >&2
    return
  fi
  gcloud redis instances create "$instance" --region="$region" --project="$project" --labels="$labels" "$@" >/dev/null
  done_with create instance "$instance"
}
redis_fields='value[separator="|"](tier,memorySizeGb,redisVersion,transitEncryptionMode,authEnabled,connectMode)'

# valkey_instance NAME REGION LABELS STATE FLAG...
# As redis_instance.
valkey_instance() {
  instance=$1 region=$2 labels=$3 state=$4
  shift 4
  if live=$(gcloud memorystore instances describe "$instance" --location="$region" --project="$project" --format="$valkey_fields" 2>/dev/null); then
    if [ "$live" = "$state" ]; then
      done_with identical instance "$instance"
      return
    fi
    done_with different instance "$instance"
    printf 'warning: instance %s is %s, the file wants %s; this script changes no instance: gcloud memorystore instances update %s\n' \
      "$instance" "$live" "$state" "$instance" >&2
    return
  fi
  gcloud memorystore instances create "$instance" --location="$region" --project="$project" --labels="$labels" "$@" >/dev/null
  done_with create instance "$instance"
}
valkey_fields='value[separator="|"](mode,shardCount,replicaCount,nodeType,engineVersion,transitEncryptionMode,authorizationMode)'

# sql_instance PROJECT NAME STATE FLAG...
# STATE is what `describe` prints of an instance as the file has it; FLAGs make one. An instance that differs is left as it is: most
# changes restart it, some can't be made.
sql_instance() {
  instance_project=$1 instance=$2 state=$3
  shift 3
  if live=$(gcloud sql instances describe "$instance" --project="$instance_project" --format="$instance_fields" 2>/dev/null); then
    if [ "$live" = "$state" ]; then
      done_with identical instance "$instance_project $instance"
      return
    fi
    done_with different instance "$instance_project $instance"
    printf 'warning: instance %s is %s, the file wants %s; this script changes no instance: gcloud sql instances patch %s\n' \
      "$instance" "$live" "$state" "$instance" >&2
    return
  fi
  gcloud sql instances create "$instance" --project="$instance_project" "$@" >/dev/null
  done_with create instance "$instance_project $instance"
}
instance_fields='value[separator="|"](databaseVersion,region,settings.tier,settings.edition,settings.availabilityType)'

# sql_database PROJECT INSTANCE NAME
sql_database() {
  if gcloud sql databases describe "$3" --instance="$2" --project="$1" --format='value(name)' >/dev/null 2>&1; then
    done_with identical database "$1 $2 $3"
    return
  fi
  gcloud sql databases create "$3" --instance="$2" --project="$1" >/dev/null
  done_with create database "$1 $2 $3"
}

# sql_user PROJECT INSTANCE NAME LOGIN: NAME is how the database knows the service account that is made a user by its LOGIN
sql_user() {
  users=$(gcloud sql users list --instance="$2" --project="$1" --format='value(name)')
  case "$newline$users$newline" in *"$newline$3$newline"*)
    done_with identical user "$1 $2 $3"
    return
    ;;
  esac
  patiently gcloud sql users create "$4" --instance="$2" --project="$1" --type=cloud_iam_service_account
  done_with create user "$1 $2 $3"
}

bindings='value[separator="|"](bindings.role,bindings.members,bindings.condition.title)'

# granted POLICY ROLE MEMBER [TITLE]: whether the policy grants it, under the condition of that title alone, or under none
granted() {
  case "$newline$1$newline" in *"$newline$2|$3|${4-}$newline"*) return 0 ;; esac
  return 1
}

# topic_grant ID ROLE MEMBER, and the like: an existing grant is left alone, others' grants are never touched
topic_grant() {
  policy=$(gcloud pubsub topics get-iam-policy "$1" --project="$project" --flatten='bindings[].members' --format="$bindings")
  if granted "$policy" "$2" "$3"; then
    done_with identical grant "$1 $2 $3"
    return
  fi
  patiently gcloud pubsub topics add-iam-policy-binding "$1" --project="$project" --role="$2" --member="$3"
  done_with create grant "$1 $2 $3"
}

subscription_grant() {
  policy=$(gcloud pubsub subscriptions get-iam-policy "$1" --project="$project" --flatten='bindings[].members' \
    --format="$bindings")
  if granted "$policy" "$2" "$3"; then
    done_with identical grant "$1 $2 $3"
    return
  fi
  patiently gcloud pubsub subscriptions add-iam-policy-binding "$1" --project="$project" --role="$2" --member="$3"
  done_with create grant "$1 $2 $3"
}

account_grant() {
  policy=$(gcloud iam service-accounts get-iam-policy "$1" --project="$project" --flatten='bindings[].members' \
    --format="$bindings")
  if granted "$policy" "$2" "$3"; then
    done_with identical grant "$1 $2 $3"
    return
  fi
  patiently gcloud iam service-accounts add-iam-policy-binding "$1" --project="$project" --role="$2" --member="$3" \
    --condition=None
  done_with create grant "$1 $2 $3"
}

key_grant() {
  policy=$(gcloud kms keys get-iam-policy "$1" --flatten='bindings[].members' --format="$bindings")
  if granted "$policy" "$2" "$3"; then
    done_with identical grant "$1 $2 $3"
    return
  fi
  patiently gcloud kms keys add-iam-policy-binding "$1" --role="$2" --member="$3"
  pauses='2 4 8 16' # the grant may take some seconds to count
  done_with create grant "$1 $2 $3"
}

# project_grant PROJECT ROLE MEMBER [TITLE EXPRESSION]
project_grant() {
  condition=None
  [ -z "${4-}" ] || condition="expression=$5,title=$4"
  policy=$(gcloud projects get-iam-policy "$1" --flatten='bindings[].members' --format="$bindings")
  if granted "$policy" "$2" "$3" "${4-}"; then
    done_with identical grant "$1 $2 $3 ${4-}"
    return
  fi
  patiently gcloud projects add-iam-policy-binding "$1" --role="$2" --member="$3" --condition="$condition"
  done_with create grant "$1 $2 $3 ${4-}"
}

# job ID REGION CRON TIME_ZONE TOPIC BODY ATTRIBUTES DESCRIPTION
# The description carries a checksum over body and attributes, since `describe` prints those in no form that compares well.
job() {
  verb=create attributes=--attributes
  if live=$(gcloud scheduler jobs describe "$1" --project="$project" --location="$2" \
    --format='value[separator="|"](schedule,timeZone,pubsubTarget.topicName,description)' 2>/dev/null); then
    if [ "$live" = "$3|$4|$5|$8" ]; then
      done_with identical job "$1"
      return
    fi
    verb=update attributes=--update-attributes
  fi
  gcloud scheduler jobs "$verb" pubsub "$1" --project="$project" --location="$2" --schedule="$3" --time-zone="$4" \
    --topic="$5" --message-body="$6" "$attributes=$7" --description="$8" >/dev/null
  done_with "$verb" job "$1"
}

# log_metric NAME CHECKSUM CONFIG, and the like: CONFIG carries the CHECKSUM of the rest of it to where `describe` prints it
log_metric() {
  verb=create
  if live=$(gcloud logging metrics describe "$1" --project="$project" --format='value(description)' 2>/dev/null); then
    case $live in *"($2)")
      done_with identical metric "$1"
      return
      ;;
    esac
    verb=update
  fi
  printf '%s\n' "$3" | gcloud logging metrics "$verb" "$1" --project="$project" --config-from-file=- >/dev/null
  done_with "$verb" metric "$1"
}

# alert_policy TITLE CHECKSUM CONFIG: its id is the service's own, so it is found by its title
alert_policy() {
  live=$(gcloud monitoring policies list --project="$project" --filter="displayName=\"$1\"" \
    --format='value[separator="|"](name,userLabels.checksum)')
  case $live in
    '')
      printf '%s\n' "$3" | gcloud monitoring policies create --project="$project" --policy-from-file=- >/dev/null
      done_with create policy "$1"
      ;;
    *"$newline"*) refuse "several alert policies are called $1, so it can't be said which is the fleet's: delete all but one" ;;
    *"|$2") done_with identical policy "$1" ;;
    *)
      printf '%s\n' "$3" | gcloud monitoring policies update "${live%%"|"*}" --project="$project" --policy-from-file=- >/dev/null
      done_with update policy "$1"
      ;;
  esac
}

# dashboard NAME CHECKSUM CONFIG
dashboard() {
  if live=$(gcloud monitoring dashboards describe "$1" --project="$project" \
    --format='value[separator="|"](etag,labels.checksum)' 2>/dev/null); then
    case $live in *"|$2")
      done_with identical dashboard "$1"
      return
      ;;
    esac
    printf '{"etag": "%s", %s\n' "${live%%"|"*}" "${3#"{"}" |
      gcloud monitoring dashboards update "$1" --project="$project" --config-from-file=- >/dev/null
    done_with update dashboard "$1"
    return
  fi
  printf '%s\n' "$3" | gcloud monitoring dashboards create --project="$project" --config-from-file=- >/dev/null
  done_with create dashboard "$1"
}

project=my-project
topic data-writes shardctl-fleet=orders '' '' ''
topic data-writes-dead shardctl-fleet=orders '' '' ''
subscription orders-strays projects/my-project/topics/data-writes 'NOT (hasPrefix(attributes.slot,"0") OR hasPrefix(attributes.slot,"1"))' shardctl-fleet=orders '60|2678400s||||||||||' --ack-deadline=60 --message-retention-duration=2678400s --no-retain-acked-messages --expiration-period=never
subscription orders-dead projects/my-project/topics/data-writes-dead '' shardctl-fleet=orders '60|2678400s||||||||||' --ack-deadline=60 --message-retention-duration=2678400s --no-retain-acked-messages --expiration-period=never
subscription orders-s0-g1 projects/my-project/topics/data-writes 'hasPrefix(attributes.slot,"0") OR hasPrefix(attributes.slot,"1")' shardctl-fleet=orders '60|604800s|||1s|600s|projects/my-project/topics/data-writes-dead|5|https://push.example.com/s0/orders-s0-g1|pusher@my-project.iam.gserviceaccount.com|https://push.example.com|' --ack-deadline=60 --message-retention-duration=604800s --no-retain-acked-messages --expiration-period=never --min-retry-delay=1s --max-retry-delay=600s --dead-letter-topic=projects/my-project/topics/data-writes-dead --max-delivery-attempts=5 --push-endpoint=https://push.example.com/s0/orders-s0-g1 --push-auth-service-account=pusher@my-project.iam.gserviceaccount.com --push-auth-token-audience=https://push.example.com
account orders-s0@my-project.iam.gserviceaccount.com orders-s0 'Consumer of shard orders-s0'
topic_grant data-writes-dead roles/pubsub.publisher serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com
account_grant pusher@my-project.iam.gserviceaccount.com roles/iam.serviceAccountTokenCreator serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com
account_grant orders-s0@my-project.iam.gserviceaccount.com roles/iam.workloadIdentityUser 'serviceAccount:my-project.svc.id.goog[writers/orders-s0]'
subscription_grant orders-s0-g1 roles/pubsub.subscriber serviceAccount:orders-s0@my-project.iam.gserviceaccount.com
subscription_grant orders-s0-g1 roles/pubsub.subscriber serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com
topic_grant data-writes-dead roles/pubsub.publisher serviceAccount:orders-s0@my-project.iam.gserviceaccount.com
log_metric orders-dead-lettered 7b5cacac91b92b90 '{"description": "Writes that the consumers dead-lettered. (7b5cacac91b92b90)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"dead_lettered\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
log_metric orders-parked 496b7aae9fc420fc '{"description": "Writes that the consumers parked. (496b7aae9fc420fc)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"parked\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
log_metric orders-batch-retries 849baa104293b880 '{"description": "Batches that failed and are tried again. (849baa104293b880)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"batch_retry\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
log_metric orders-barriers-refused 72bdf18b3b27ea4c '{"description": "Barriers that a shard'"'"'s database doesn'"'"'t await. (72bdf18b3b27ea4c)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"barrier_refused\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
log_metric orders-redis-lost 0a712bc1e034210b '{"description": "Consumers that Redis doesn'"'"'t answer: at once, then every ten minutes. (0a712bc1e034210b)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"redis_lost\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
log_metric orders-redis-back 56cc8ba493109d86 '{"description": "Consumers that Redis answers again. (56cc8ba493109d86)", "filter": "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"writers\" AND resource.labels.container_name=\"consumer\" AND jsonPayload.fleet=\"orders\" AND jsonPayload.action=(\"redis_back\")", "labelExtractors": {"shard": "EXTRACT(jsonPayload.shard)"}, "metricDescriptor": {"labels": [{"key": "shard", "valueType": "STRING"}], "metricKind": "DELTA", "unit": "1", "valueType": "INT64"}}'
alert_policy orders-consumer/ShardctlBacklog d05d1e7c8fff1828 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlBacklog", "disableMetricValidation": true, "duration": "600s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum by (shard) (label_replace(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\"}, \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\")) > 10000", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlBacklog"}], "displayName": "orders-consumer/ShardctlBacklog", "documentation": {"content": "Shard ${metric_or_resource.label.shard} falls behind.\n\n${metric.label.value} messages wait for shard ${metric_or_resource.label.shard} of orders: more come in than its consumers write.\n\nRunbook: docs/alerts.md#shardctlbacklog", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} falls behind"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "d05d1e7c8fff1828", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlOldestMessage 0aa02276b7629a44 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlOldestMessage", "disableMetricValidation": true, "duration": "120s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "critical"}, "query": "max by (shard) (label_replace(pubsub_googleapis_com:subscription_oldest_unacked_message_age{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\"}, \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\")) > 600", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlOldestMessage"}], "displayName": "orders-consumer/ShardctlOldestMessage", "documentation": {"content": "Shard ${metric_or_resource.label.shard} has an old unacked message.\n\nThe oldest unacked message of shard ${metric_or_resource.label.shard} of orders is ${metric.label.value} s old: the shard is down, far behind, or stuck on a slot.\n\nRunbook: docs/alerts.md#shardctloldestmessage", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} has an old unacked message"}, "enabled": true, "notificationChannels": ["projects/my-project/notificationChannels/111"], "severity": "CRITICAL", "userLabels": {"checksum": "0aa02276b7629a44", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlDeadLetters 61e6ee094c364d74 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlDeadLetters", "disableMetricValidation": true, "duration": "60s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-dead\"}) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlDeadLetters"}], "displayName": "orders-consumer/ShardctlDeadLetters", "documentation": {"content": "Fleet orders has dead letters.\n\n${metric.label.value} messages are on the dead-letter subscription of orders: writes that can'"'"'t succeed, or that Pub/Sub gave up on. They are kept for 31 days.\n\nRunbook: docs/alerts.md#shardctldeadletters", "mimeType": "text/markdown", "subject": "Fleet orders has dead letters"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "61e6ee094c364d74", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlStrays aac11fe6cd5dfcc2 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlStrays", "disableMetricValidation": true, "duration": "60s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-strays(-t[0-9]+)?(-[0-9a-f]{6})?\"}) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlStrays"}], "displayName": "orders-consumer/ShardctlStrays", "documentation": {"content": "No shard takes some messages of fleet orders.\n\n${metric.label.value} messages on orders'"'"'s topics have no valid slot, or a type that no shard takes: a producer is at fault, and these writes reach no database.\n\nRunbook: docs/alerts.md#shardctlstrays", "mimeType": "text/markdown", "subject": "No shard takes some messages of fleet orders"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "aac11fe6cd5dfcc2", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlParked 39593abd3a158063 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlParked", "disableMetricValidation": true, "duration": "0s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum by (shard) (increase(logging_googleapis_com:user_orders_parked{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[15m])) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlParked"}], "displayName": "orders-consumer/ShardctlParked", "documentation": {"content": "Shard ${metric_or_resource.label.shard} parks writes.\n\n${metric.label.value} writes of shard ${metric_or_resource.label.shard} were parked in 15 minutes: they failed, an earlier write of their key did, or their type'"'"'s table isn'"'"'t ready. `shardctl parked list` says why, and what waits for an operator.\n\nRunbook: docs/alerts.md#shardctlparked", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} parks writes"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "39593abd3a158063", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlFailureRate 68421e10d649c1fd '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlFailureRate", "disableMetricValidation": true, "duration": "300s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum by (shard) (rate(logging_googleapis_com:user_orders_dead_lettered{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[5m])) / sum by (shard) (label_replace(rate(pubsub_googleapis_com:subscription_push_request_count{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\",response_class=\"ack\"}[5m]), \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\")) > 0.01 or sum by (shard) (rate(logging_googleapis_com:user_orders_parked{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[5m])) / sum by (shard) (label_replace(rate(pubsub_googleapis_com:subscription_push_request_count{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\",response_class=\"ack\"}[5m]), \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\")) > 0.01", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlFailureRate"}], "displayName": "orders-consumer/ShardctlFailureRate", "documentation": {"content": "Shard ${metric_or_resource.label.shard} fails too often.\n\n${metric.label.value} (1 is all) of the batches of shard ${metric_or_resource.label.shard} are retried, or of its writes are dead-lettered or parked.\n\nRunbook: docs/alerts.md#shardctlfailurerate", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} fails too often"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "68421e10d649c1fd", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlRedisDegraded 376e206afb8fa014 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlRedisDegraded", "disableMetricValidation": true, "duration": "300s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "max by (shard) (sum by (shard, pod_name) (increase(logging_googleapis_com:user_orders_redis_lost{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[11m])) > 0 unless sum by (shard, pod_name) (increase(logging_googleapis_com:user_orders_redis_back{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[11m])) > 0) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlRedisDegraded"}], "displayName": "orders-consumer/ShardctlRedisDegraded", "documentation": {"content": "Shard ${metric_or_resource.label.shard} works without locks.\n\nRedis doesn'"'"'t answer consumers of shard ${metric_or_resource.label.shard}. Writes continue, safely but slower: several replicas may process the same slot at once, and only one of them commits.\n\nRunbook: docs/alerts.md#shardctlredisdegraded", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} works without locks"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "376e206afb8fa014", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlSlotFailing 102bee80019baa48 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlSlotFailing", "disableMetricValidation": true, "duration": "120s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "critical"}, "query": "sum by (shard) (increase(logging_googleapis_com:user_orders_batch_retries{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[2m])) > 0 unless sum by (shard) (label_replace(increase(pubsub_googleapis_com:subscription_push_request_count{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\",response_class=\"ack\"}[2m]), \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\")) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlSlotFailing"}], "displayName": "orders-consumer/ShardctlSlotFailing", "documentation": {"content": "Shard ${metric_or_resource.label.shard} can'"'"'t write.\n\nBatches of shard ${metric_or_resource.label.shard} have failed and none has succeeded for 120 s, and its slots are blocked. Nothing is lost: the messages are kept and retried.\n\nRunbook: docs/alerts.md#shardctlslotfailing", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} can'"'"'t write"}, "enabled": true, "notificationChannels": ["projects/my-project/notificationChannels/111"], "severity": "CRITICAL", "userLabels": {"checksum": "102bee80019baa48", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlBarriersRefused 6c06e2b717d9bedb '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlBarriersRefused", "disableMetricValidation": true, "duration": "0s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "sum by (shard) (increase(logging_googleapis_com:user_orders_barriers_refused{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[15m])) > 0", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlBarriersRefused"}], "displayName": "orders-consumer/ShardctlBarriersRefused", "documentation": {"content": "Shard ${metric_or_resource.label.shard} receives barriers that its database doesn'"'"'t await.\n\n${metric.label.value} messages in 15 minutes looked like the barrier of a slot'"'"'s move to shard ${metric_or_resource.label.shard}, and changed nothing. Somebody forges them, or a `shardctl rebalance run` of version 0.1.0 is running.\n\nRunbook: docs/alerts.md#shardctlbarriersrefused", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} receives barriers that its database doesn'"'"'t await"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "6c06e2b717d9bedb", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlPodsUnavailable e7850bca942340b2 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlPodsUnavailable", "disableMetricValidation": true, "duration": "600s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "critical"}, "query": "(max by (shard) (label_replace(max by (deployment) (kube_deployment_spec_replicas{namespace=\"writers\",deployment=~\"orders-(s0)\"}) - max by (deployment) (kube_deployment_status_replicas_available{namespace=\"writers\",deployment=~\"orders-(s0)\"}), \"shard\", \"$1\", \"deployment\", \"orders-(s0)\"))) > 1", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlPodsUnavailable"}], "displayName": "orders-consumer/ShardctlPodsUnavailable", "documentation": {"content": "Shard ${metric_or_resource.label.shard} is short of pods.\n\n${metric.label.value} pods of shard ${metric_or_resource.label.shard} aren'"'"'t available.\n\nRunbook: docs/alerts.md#shardctlpodsunavailable", "mimeType": "text/markdown", "subject": "Shard ${metric_or_resource.label.shard} is short of pods"}, "enabled": true, "notificationChannels": ["projects/my-project/notificationChannels/111"], "severity": "CRITICAL", "userLabels": {"checksum": "e7850bca942340b2", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlMemory 622e6c892fe9a1c9 '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlMemory", "disableMetricValidation": true, "duration": "300s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "warning"}, "query": "(label_replace(max by (pod) (label_replace(kubernetes_io:container_memory_limit_utilization{monitored_resource=\"k8s_container\",project_id=\"my-project\",namespace_name=\"writers\",container_name=\"consumer\",memory_type=\"non-evictable\",pod_name=~\"orders-(s0)-[a-z0-9]+-[a-z0-9]+\"}, \"pod\", \"$1\", \"pod_name\", \"(.*)\")), \"shard\", \"$1\", \"pod\", \"orders-(s0)-[a-z0-9]+-[a-z0-9]+\")) > 0.8", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlMemory"}], "displayName": "orders-consumer/ShardctlMemory", "documentation": {"content": "Pod ${metric_or_resource.label.pod} is short of memory.\n\nThe consumer in ${metric_or_resource.label.pod} uses ${metric.label.value} (1 is all) of its memory limit, at which it is killed.\n\nRunbook: docs/alerts.md#shardctlmemory", "mimeType": "text/markdown", "subject": "Pod ${metric_or_resource.label.pod} is short of memory"}, "enabled": true, "notificationChannels": [], "severity": "WARNING", "userLabels": {"checksum": "622e6c892fe9a1c9", "shardctl-fleet": "orders"}}'
alert_policy orders-consumer/ShardctlSilent f00a7c66f74460cf '{"combiner": "OR", "conditions": [{"conditionPrometheusQueryLanguage": {"alertRule": "ShardctlSilent", "disableMetricValidation": true, "duration": "600s", "evaluationInterval": "30s", "labels": {"fleet": "orders", "severity": "critical"}, "query": "absent(kubernetes_io:container_uptime{monitored_resource=\"k8s_container\",project_id=\"my-project\",namespace_name=\"writers\",container_name=\"consumer\",pod_name=~\"orders-(s0)-[a-z0-9]+-[a-z0-9]+\"})", "ruleGroup": "orders-consumer"}, "displayName": "ShardctlSilent"}], "displayName": "orders-consumer/ShardctlSilent", "documentation": {"content": "No consumer of fleet orders reports metrics.\n\nNo consumer of orders runs: messages wait, and none takes effect.\n\nRunbook: docs/alerts.md#shardctlsilent", "mimeType": "text/markdown", "subject": "No consumer of fleet orders reports metrics"}, "enabled": true, "notificationChannels": ["projects/my-project/notificationChannels/111"], "severity": "CRITICAL", "userLabels": {"checksum": "f00a7c66f74460cf", "shardctl-fleet": "orders"}}'
dashboard orders-shards 352a40363ab082db '{"displayName": "Shards of orders", "labels": {"checksum": "352a40363ab082db"}, "mosaicLayout": {"columns": 48, "tiles": [{"height": 16, "widget": {"title": "Backlog: Undelivered messages", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (label_replace(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\"}, \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\"))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 0, "yPos": 0}, {"height": 16, "widget": {"title": "Backlog: Oldest unacked message", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "max by (shard) (label_replace(pubsub_googleapis_com:subscription_oldest_unacked_message_age{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\"}, \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\"))", "unitOverride": "s"}}]}}, "width": 16, "xPos": 16, "yPos": 0}, {"height": 16, "widget": {"title": "Backlog: Dead letters and strays", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "label_replace(sum(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-dead\"}), \"line\", \"dead letters\", \"\", \"\")", "unitOverride": "1"}}, {"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "label_replace(sum(pubsub_googleapis_com:subscription_num_undelivered_messages{project_id=\"my-project\",subscription_id=~\"orders-strays(-t[0-9]+)?(-[0-9a-f]{6})?\"}), \"line\", \"strays\", \"\", \"\")", "unitOverride": "1"}}]}}, "width": 16, "xPos": 32, "yPos": 0}, {"height": 16, "widget": {"title": "Throughput: Messages sent to consumers", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (label_replace(rate(pubsub_googleapis_com:subscription_push_request_count{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\"}[5m]), \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\"))", "unitOverride": "1"}}]}}, "width": 24, "xPos": 0, "yPos": 16}, {"height": 16, "widget": {"title": "Throughput: Messages acknowledged", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (label_replace(rate(pubsub_googleapis_com:subscription_push_request_count{project_id=\"my-project\",subscription_id=~\"orders-(s0)-g[0-9]+(-t[0-9]+)?\",response_class=\"ack\"}[5m]), \"shard\", \"$1\", \"subscription_id\", \"orders-(s0)-g[0-9]+(-t[0-9]+)?\"))", "unitOverride": "1"}}]}}, "width": 24, "xPos": 24, "yPos": 16}, {"height": 16, "widget": {"title": "Failures: Batches retried", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (rate(logging_googleapis_com:user_orders_batch_retries{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[5m]))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 0, "yPos": 32}, {"height": 16, "widget": {"title": "Failures: Writes dead-lettered", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (rate(logging_googleapis_com:user_orders_dead_lettered{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[5m]))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 16, "yPos": 32}, {"height": 16, "widget": {"title": "Failures: Writes parked", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (shard) (rate(logging_googleapis_com:user_orders_parked{monitored_resource=\"k8s_container\",project_id=\"my-project\"}[5m]))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 32, "yPos": 32}, {"height": 16, "widget": {"title": "Pods: Missing", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "max by (shard) (label_replace(max by (deployment) (kube_deployment_spec_replicas{namespace=\"writers\",deployment=~\"orders-(s0)\"}) - max by (deployment) (kube_deployment_status_replicas_available{namespace=\"writers\",deployment=~\"orders-(s0)\"}), \"shard\", \"$1\", \"deployment\", \"orders-(s0)\"))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 0, "yPos": 48}, {"height": 16, "widget": {"title": "Pods: Memory, share of the limit", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "label_replace(max by (pod) (label_replace(kubernetes_io:container_memory_limit_utilization{monitored_resource=\"k8s_container\",project_id=\"my-project\",namespace_name=\"writers\",container_name=\"consumer\",memory_type=\"non-evictable\",pod_name=~\"orders-(s0)-[a-z0-9]+-[a-z0-9]+\"}, \"pod\", \"$1\", \"pod_name\", \"(.*)\")), \"shard\", \"$1\", \"pod\", \"orders-(s0)-[a-z0-9]+-[a-z0-9]+\")", "unitOverride": "1"}}]}}, "width": 16, "xPos": 16, "yPos": 48}, {"height": 16, "widget": {"title": "Pods: Restarts in ten minutes", "xyChart": {"dataSets": [{"plotType": "LINE", "timeSeriesQuery": {"prometheusQuery": "sum by (pod_name) (increase(kubernetes_io:container_restart_count{monitored_resource=\"k8s_container\",project_id=\"my-project\",namespace_name=\"writers\",container_name=\"consumer\",pod_name=~\"orders-(s0)-[a-z0-9]+-[a-z0-9]+\"}[10m]))", "unitOverride": "1"}}]}}, "width": 16, "xPos": 32, "yPos": 48}]}, "name": "projects/my-project/dashboards/orders-shards"}'
