/* Segments a stack that comes on standard input, beside `neurodeploy serve`.
 *
 *     neurodeploy serve --port 7355 &
 *     cc -O2 -pthread example_client.c -o example_client
 *     ./example_client 7355 2048 2048 500 < planes.u16 > masks.u8
 *
 * Input: little-endian uint16, plane after plane. Output: uint8, 0 and 255, as many
 * planes. The messages are those of PROTOCOL.md. One thread sends, the other receives:
 * a client that only sends fills the buffers between and is then held up for ever. Where
 * the server ends the connection, the one that receives says why.
 *
 * POSIX; on Windows the same calls are in winsock2.h, after WSAStartup.
 * The header is copied field by field, so padding does not matter; the byte order is
 * that of every x86 and ARM machine in use.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER_BYTES = 32, HELLO_BYTES = 48, WELCOME_BYTES = 32 };
enum { HELLO = 1, PLANE = 2, FINISH = 3 };
enum { WELCOME = 129, RESULT = 130, DONE = 131, STATUS = 132, REFUSED = 133, FAILED = 134 };
enum { UINT16 = 2, BLOCK = 0, MASK = 0, VALID = 1 };

struct header {
    uint16_t kind;
    uint64_t index;
    uint32_t flags;
    uint32_t length;
    double value;
};

static int server;
static uint32_t height, width, planes;

static void die(const char *what)
{
    fprintf(stderr, "example_client: %s\n", what);
    exit(1);
}

static int send_all(const void *data, size_t n)
{
    const char *at = data;
    while (n > 0) {
        ssize_t sent = send(server, at, n, 0);
        if (sent <= 0)
            return 0;
        at += sent;
        n -= (size_t)sent;
    }
    return 1;
}

static void receive_all(void *data, size_t n)
{
    char *at = data;
    while (n > 0) {
        ssize_t got = recv(server, at, n, 0);
        if (got <= 0)
            die("the server has gone");
        at += got;
        n -= (size_t)got;
    }
}

/* 0 where the server has gone. */
static int send_message(uint16_t kind, uint64_t index, const void *payload, uint32_t length)
{
    unsigned char raw[HEADER_BYTES] = {'N', 'D', 'L', 'V'};
    uint16_t version = 1;
    memcpy(raw + 4, &version, 2);
    memcpy(raw + 6, &kind, 2);
    memcpy(raw + 8, &index, 8);
    memcpy(raw + 20, &length, 4);
    return send_all(raw, sizeof raw) && (length == 0 || send_all(payload, length));
}

static struct header receive_header(void)
{
    unsigned char raw[HEADER_BYTES];
    struct header h;
    uint16_t version;
    receive_all(raw, sizeof raw);
    memcpy(&version, raw + 4, 2);
    if (memcmp(raw, "NDLV", 4) != 0 || version != 1)
        die("the server speaks another protocol");
    memcpy(&h.kind, raw + 6, 2);
    memcpy(&h.index, raw + 8, 8);
    memcpy(&h.flags, raw + 16, 4);
    memcpy(&h.length, raw + 20, 4);
    memcpy(&h.value, raw + 24, 8);
    return h;
}

static void say_text(struct header h)
{
    char text[65537];
    if (h.length > 65536)
        die("the server announces too long a text");
    receive_all(text, h.length);
    text[h.length] = 0;
    fprintf(stderr, "example_client: %s\n", text);
}

static void *receive_results(void *unused)
{
    size_t pixels = (size_t)height * width;
    unsigned char *mask = malloc(pixels);
    double slowest = 0;
    uint64_t finished = 0, lost = 0;
    if (mask == NULL)
        die("out of memory");
    for (;;) {
        struct header h = receive_header();
        if (h.kind == DONE)
            break;
        if (h.kind == FAILED) {
            say_text(h);
            exit(1);
        }
        if (h.kind != RESULT) {
            say_text(h);
            continue;
        }
        if (h.length != (h.flags & VALID ? pixels : 0))
            die("a result is no plane");
        memset(mask, 0, pixels);
        receive_all(mask, h.length);
        finished++;
        lost += !(h.flags & VALID);
        if (h.value > slowest)
            slowest = h.value;
        if (fwrite(mask, 1, pixels, stdout) != pixels)
            die("cannot write");
    }
    if (fflush(stdout) != 0)
        die("cannot write");
    fprintf(stderr, "%llu planes, %llu not valid, slowest %.1f ms\n",
            (unsigned long long)finished, (unsigned long long)lost, slowest * 1e3);
    free(mask);
    return unused;
}

int main(int argc, char **argv)
{
    unsigned char hello[HELLO_BYTES] = {0};
    struct sockaddr_in address = {0};
    struct header h;
    pthread_t receiver;
    uint16_t *plane;
    size_t pixels;
    double background = 0, noise = 0;

    if (argc != 5 && argc != 7)
        die("usage: example_client PORT HEIGHT WIDTH PLANES [BACKGROUND NOISE]");
    height = (uint32_t)atoi(argv[2]);
    width = (uint32_t)atoi(argv[3]);
    planes = (uint32_t)atoi(argv[4]);
    if (argc == 7) {
        background = atof(argv[5]);
        noise = atof(argv[6]);
    }
    pixels = (size_t)height * width;
    signal(SIGPIPE, SIG_IGN); /* a server that has gone is an error of send */

    server = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(server, (struct sockaddr *)&address, sizeof address) != 0)
        die("no server answers: start `neurodeploy serve`");

    uint32_t fields[6] = {height, width, UINT16, BLOCK, MASK, 16};
    memcpy(hello, fields, 24);
    memcpy(hello + 24, &background, 8);
    memcpy(hello + 32, &noise, 8); /* 0: learn both from the first 16 planes */
    send_message(HELLO, 0, hello, sizeof hello);
    h = receive_header();
    if (h.kind != WELCOME) {
        say_text(h);
        return 1;
    }
    unsigned char welcome[WELCOME_BYTES + 65536];
    if (h.length > sizeof welcome)
        die("a WELCOME is too long");
    receive_all(welcome, h.length);

    if (pthread_create(&receiver, NULL, receive_results, NULL) != 0)
        die("cannot start a thread");
    plane = malloc(pixels * 2);
    if (plane == NULL)
        die("out of memory");
    for (uint64_t z = 0; z < planes; z++) {
        if (fread(plane, 2, pixels, stdin) != pixels)
            die("the input ends too early");
        if (!send_message(PLANE, z, plane, (uint32_t)(pixels * 2)))
            break;
    }
    send_message(FINISH, 0, NULL, 0);
    pthread_join(receiver, NULL);
    free(plane);
    close(server);
    return 0;
}
