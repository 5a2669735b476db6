/* The client of libnbd, for comparison: OPERATION DEPTH COUNT SOCKET. */
#include <libnbd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096
#define SPAN (1 << 20)

static char buffers[64][BLOCK];
static int idle[64], idle_count;

static void check (int result)
{
  if (result == -1) {
    fprintf (stderr, "%s\n", nbd_get_error ());
    exit (1);
  }
}

static struct nbd_handle *enter (const char *path)
{
  struct nbd_handle *nbd = nbd_create ();
  if (nbd == NULL) check (-1);
  check (nbd_connect_unix (nbd, path));
  return nbd;
}

static void leave (struct nbd_handle *nbd)
{
  check (nbd_shutdown (nbd, 0));
  nbd_close (nbd);
}

static int completed (void *slot, int *error)
{
  if (*error) exit (1);
  idle[idle_count++] = (int) (intptr_t) slot;
  return 1;
}

static void start (struct nbd_handle *nbd, int writes, int slot, uint64_t offset)
{
  nbd_completion_callback done = { .callback = completed, .user_data = (void *) (intptr_t) slot };
  int64_t cookie = writes
    ? nbd_aio_pwrite (nbd, buffers[slot], BLOCK, offset, done, 0)
    : nbd_aio_pread (nbd, buffers[slot], BLOCK, offset, done, 0);
  if (cookie == -1) check (-1);
}

int main (int argc, char **argv)
{
  if (argc != 5) return 2;
  int writes = !strcmp (argv[1], "write"), depth = atoi (argv[2]);
  uint64_t count = atoi (argv[3]);
  if (!strcmp (argv[1], "connect")) {
    while (count--) leave (enter (argv[4]));
    return 0;
  }
  struct nbd_handle *nbd = enter (argv[4]);
  if (depth == 1) {
    for (uint64_t at = 0; at < count; at++) {
      uint64_t offset = at * BLOCK % SPAN;
      check (writes ? nbd_pwrite (nbd, buffers[0], BLOCK, offset, 0)
                    : nbd_pread (nbd, buffers[0], BLOCK, offset, 0));
    }
  }
  else {
    while (idle_count < depth) { idle[idle_count] = idle_count; idle_count++; }
    for (uint64_t at = 0; at < count || idle_count < depth;) {
      while (at < count && idle_count)
        start (nbd, writes, idle[--idle_count], at++ * BLOCK % SPAN);
      if (nbd_poll (nbd, -1) == -1) check (-1);
    }
  }
  leave (nbd);
  return 0;
}
