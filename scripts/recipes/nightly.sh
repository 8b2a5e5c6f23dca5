#!/bin/sh
# A cron job that runs on one of several machines: the same line in the crontab of each.
#
#   0 3 * * *  logd elect run nightly --wait 0 --hold 60 -- ./nightly.sh
#
# --wait 0: who finds another one leading does nothing (exit code 4).  --hold 60: who comes some
# seconds later, because clocks differ, finds the leader still leading.  The job is ended if its
# machine loses leadership; what it appends is refused then:
#
#   ./report | logd produce reports --fence "$LOGD_FENCE"
set -eu
echo "night $(date +%F), token $LOGD_FENCE_TOKEN"
