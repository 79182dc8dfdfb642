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
topic data-writes-0 shardctl-fleet=orders '' '' ''
topic data-writes-1 shardctl-fleet=orders '' '' ''
topic data-writes-dead shardctl-fleet=orders '' '' ''
subscription orders-strays-t0 projects/my-project/topics/data-writes-0 'NOT hasPrefix(attributes.slot,"0")' shardctl-fleet=orders '60|2678400s||||||||||' --ack-deadline=60 --message-retention-duration=2678400s --no-retain-acked-messages --expiration-period=never
subscription orders-strays-t1 projects/my-project/topics/data-writes-1 'NOT hasPrefix(attributes.slot,"1")' shardctl-fleet=orders '60|2678400s||||||||||' --ack-deadline=60 --message-retention-duration=2678400s --no-retain-acked-messages --expiration-period=never
subscription orders-dead projects/my-project/topics/data-writes-dead '' shardctl-fleet=orders '60|2678400s||||||||||' --ack-deadline=60 --message-retention-duration=2678400s --no-retain-acked-messages --expiration-period=never
subscription orders-s0-g1-t0 projects/my-project/topics/data-writes-0 'hasPrefix(attributes.slot,"0")' shardctl-fleet=orders '60|604800s|||1s|600s|projects/my-project/topics/data-writes-dead|5||||' --ack-deadline=60 --message-retention-duration=604800s --no-retain-acked-messages --expiration-period=never --min-retry-delay=1s --max-retry-delay=600s --dead-letter-topic=projects/my-project/topics/data-writes-dead --max-delivery-attempts=5
subscription orders-s1-g1-t1 projects/my-project/topics/data-writes-1 'hasPrefix(attributes.slot,"1")' shardctl-fleet=orders '60|604800s|||1s|600s|projects/my-project/topics/data-writes-dead|5||||' --ack-deadline=60 --message-retention-duration=604800s --no-retain-acked-messages --expiration-period=never --min-retry-delay=1s --max-retry-delay=600s --dead-letter-topic=projects/my-project/topics/data-writes-dead --max-delivery-attempts=5
account orders-s0@my-project.iam.gserviceaccount.com orders-s0 'Consumer of shard orders-s0'
account orders-s1@my-project.iam.gserviceaccount.com orders-s1 'Consumer of shard orders-s1'
account orders-operator@my-project.iam.gserviceaccount.com orders-operator 'Operator of fleet orders'
account_grant orders-s0@my-project.iam.gserviceaccount.com roles/iam.workloadIdentityUser 'serviceAccount:my-project.svc.id.goog[writers/orders-s0]'
subscription_grant orders-s0-g1-t0 roles/pubsub.subscriber serviceAccount:orders-s0@my-project.iam.gserviceaccount.com
topic_grant data-writes-dead roles/pubsub.publisher serviceAccount:orders-s0@my-project.iam.gserviceaccount.com
account_grant orders-s1@my-project.iam.gserviceaccount.com roles/iam.workloadIdentityUser 'serviceAccount:my-project.svc.id.goog[writers/orders-s1]'
subscription_grant orders-s1-g1-t1 roles/pubsub.subscriber serviceAccount:orders-s1@my-project.iam.gserviceaccount.com
topic_grant data-writes-dead roles/pubsub.publisher serviceAccount:orders-s1@my-project.iam.gserviceaccount.com
account_grant orders-operator@my-project.iam.gserviceaccount.com roles/iam.workloadIdentityUser 'serviceAccount:my-project.svc.id.goog[writers/orders-operator]'
project_grant my-project roles/monitoring.viewer serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-dead roles/pubsub.subscriber serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-strays-t0 roles/pubsub.subscriber serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-strays-t1 roles/pubsub.subscriber serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-dead roles/pubsub.viewer serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-strays-t0 roles/pubsub.viewer serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
subscription_grant orders-strays-t1 roles/pubsub.viewer serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
topic_grant data-writes-0 roles/pubsub.publisher serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
topic_grant data-writes-1 roles/pubsub.publisher serviceAccount:orders-operator@my-project.iam.gserviceaccount.com
